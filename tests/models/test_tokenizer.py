"""A tokenizer that its files describe whole says without transformers what it says with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models import gguf_files

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models.hub import resolve
from unspool.models.tokenizer import FileTokenizer, TextTokenizer, read_tokenizer

TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}<|im_start|>be brief<|im_end|>\n{% endif %}\n"
    "{%- for m in messages %}\n  {%- if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "<|im_start|>{{ m['role'] }} {{ m['content'] | trim }}{{ m | tojson }}<|im_end|>\n"
    "    {%- if loop.index > 5 %}{% break %}{% endif %}{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>{{ eos_token }}{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path, cache_folder: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path)
    made = Path(resolve(str(path), progress=False).path)
    (made / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return made


@pytest.fixture
def both(folder: Path) -> tuple[FileTokenizer, TextTokenizer]:
    fast = read_tokenizer("tiny", str(folder))
    assert isinstance(fast, FileTokenizer)
    return fast, TextTokenizer(fast.hf)


@given(text=st.text(max_size=40))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts(text: str, both: tuple[FileTokenizer, TextTokenizer]) -> None:
    fast, slow = both
    for special in (True, False):
        ids = fast.encode(text, special)
        assert ids == slow.encode(text, special)
        assert fast.decode(ids) == slow.decode(ids)
        assert [fast.piece(token) for token in ids] == [slow.piece(token) for token in ids]


def test_special_tokens_and_vocabulary(both: tuple[FileTokenizer, TextTokenizer]) -> None:
    fast, slow = both
    text = "hello<|im_end|> 12<|im_start|>"
    assert fast.encode(text) == slow.encode(text)
    assert fast.decode(fast.encode(text)) == slow.decode(slow.encode(text)) == "hello 12"
    assert fast.vocab() == slow.vocab()


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": " hello\n"}],
        [{"role": "system", "content": "é <b> ☃"}, {"role": "user", "content": "hello"}],
        [{"role": "user", "content": str(i)} for i in range(8)],
        [{"role": "user", "content": None}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
    ],
)
def test_chats(messages: list[dict[str, Any]], both: tuple[FileTokenizer, TextTokenizer]) -> None:
    answers = []
    for one in both:
        assert one.chats
        try:
            answers.append(one.chat(messages))
        except InvalidInput as error:
            answers.append(str(error))  # type: ignore[arg-type]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "change", [{"tokenizer_class": "GPT2Tokenizer"}, {"add_bos_token": True}, {"pad_token": {"content": "<x>"}}]
)
def test_what_transformers_would_change_is_left_to_them(change: dict[str, Any], folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert FileTokenizer.of("tiny", folder) is None


def test_a_template_with_an_extension_is_left_to_them(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% generation %}x{% endgeneration %}")
    assert FileTokenizer.of("tiny", folder) is None


def test_a_damaged_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match="tokenizer of tiny"):
        read_tokenizer("tiny", str(folder))
