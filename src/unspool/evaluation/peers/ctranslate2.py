"""CTranslate2, token by token.

https://github.com/OpenNMT/CTranslate2 . It has a format of its own, without blocks of four bits on a CPU: the weights
that our loader unpacked from the GGUF file are converted once to its int8 rows, and the result stays in the cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from unspool.evaluation.peers._peer import Peer, PeerAbsent, Watch
from unspool.models.storage import cache_dir, disk, draft_of, lock, replace_folder, sweep

QUANTIZATION = "int8"


class CTranslate2(Peer):
    """Greedy ``Generator.generate_batch``."""

    ways: ClassVar[Mapping[str, str]] = {"ctranslate2": "CTranslate2, token by token"}
    distribution = module = "ctranslate2"
    install = 'pip install "unspool[ctranslate2]"'

    def start(self) -> None:
        import ctranslate2

        folder = self._converted()
        try:
            self._generator = ctranslate2.Generator(
                str(folder), device="cpu", intra_threads=self.contest.threads, inter_threads=1
            )
        except RuntimeError as error:
            raise PeerAbsent(f"CTranslate2 does not load what its converter made of this model: {error}") from error
        self._pieces: list[str] = self.tokenizer.hf.convert_ids_to_tokens(list(range(len(self.tokenizer.hf))))

    def weights(self) -> str:
        source = self.contest.source
        origin = f" unpacked from {source.gguf.name} by Unspool's loader" if source.gguf is not None else ""
        return f"{QUANTIZATION} rows, converted from weights{origin}"

    def settings(self) -> dict[str, Any]:
        return {"quantization": QUANTIZATION, "compute_type": self._generator.compute_type}

    def complete(self, prompt: list[int], limit: int, stop_tokens: frozenset[int], watch: Watch) -> None:
        self._generator.generate_batch(
            [[self._pieces[token] for token in prompt]],
            beam_size=1,
            sampling_topk=1,
            max_length=limit,
            # Without a stop token the answer has to go on; the end is then never chosen.
            min_length=0 if stop_tokens else limit,
            end_token=sorted(stop_tokens) or None,
            return_end_token=True,
            include_prompt_in_result=False,
            callback=lambda step: watch.take([step.token_id]),
        )

    def close(self) -> None:
        self._generator.unload_model()

    def _converted(self) -> Path:
        """The model in the format of CTranslate2, made if it is not there."""
        source = Path(self.contest.source.path)
        final = cache_dir() / "peers" / f"ctranslate2-{self.version()}-{QUANTIZATION}-{_fingerprint(source)}"
        if (final / "model.bin").is_file():
            return final
        with lock(final.name), disk(final):
            if not (final / "model.bin").is_file():
                sweep(final)
                work = draft_of(final)
                try:
                    self._convert(source, work)
                    replace_folder(work, final)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
        return final

    def _convert(self, source: Path, target: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        from unspool.models.load import quiet_bars

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with quiet_bars(False):
                TransformersConverter(str(source)).convert(str(target), quantization=QUANTIZATION)
        except OSError:
            raise
        # The converter is a table of architectures over the insides of another package, and fails in as many ways as
        # these can change: whatever it says is the reason why this peer is absent.
        except Exception as error:
            raise PeerAbsent(f"its converter does not take this model: {type(error).__name__}: {error}") from error


def _fingerprint(folder: Path) -> str:
    """Of a model's folder: names, sizes and times of its files, and what its configuration says."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    text = json.dumps([files, (folder / "config.json").read_text(encoding="utf-8")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
