"""ToolDec: calls of tools without syntax errors, by a finite-state machine that the text goes through.

The machine has modes. In free *text* the model writes what it likes, until it writes the trigger; then follows the
*name* of a tool, along a trie of all names; its *arguments*, one automaton for each type, joined by separators in the
order of the signature; the *end*. Where a function was handed over it is called, its result is written into the text,
and the model goes on in free text. What leaves no choice (the rest of a name, the name of an argument, a result) is
written without asking the model. Whatever is drawn within a call is the model's distribution over the tokens that the
machine allows, renormalised; a tool is chosen by the meaning of its name alone, so hundreds of them need no
documentation in the prompt.

Paper: Chen et al., Syntax Error-Free and Generalizable Tool Use for LLMs via Finite-State Decoding, 2023 (section 3).

Beyond the paper: the machine works on bytes, so tokens may span its parts; arguments may be any JSON that a schema
describes. Functions are called when their call is committed; with a draft model also for calls that a draft holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from unspool.constraints._constraint import MatcherConstraint
from unspool.constraints._matcher import CompiledGrammar, FromStart
from unspool.constraints._tool_calls import Called, Style
from unspool.constraints._tool_machine import ToolMachine
from unspool.constraints._tool_matcher import ToolMatcher
from unspool.constraints._tools import Tool, read_tools, tools_of
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.registry import register
from unspool.core.sockets import Draft


@settings
class ToolDecSettings:
    """How calls are written, and when."""

    tools: Annotated[
        tuple[Tool, ...] | str | None,
        Field(description="the tools; in text a file: tools.py:first,second, a list of tools in JSON, an OpenAPI file"),
    ] = None
    trigger: Annotated[str, Field(min_length=1, description="what begins a call")] = "<call>"
    end: Annotated[str, Field(description="what is written behind a call")] = "</call>"
    result: Annotated[str, Field(description="what is written behind that, {} for what the function gave")] = " {} "
    style: Annotated[
        Literal["call", "json"], Field(description='arguments as in add(a=1, b=2), or as in add({"a": 1, "b": 2})')
    ] = "call"
    when: Annotated[
        Literal["model", "now"], Field(description="the model begins calls itself, or the text begins with one")
    ] = "model"
    calls: Annotated[int, Field(ge=0, description="calls after which the text ends; 0 for any number")] = 0
    arguments: Annotated[bool, Field(description="whether arguments are restricted too; names always are")] = True
    jump: Annotated[
        Literal["off", "token", "text"],
        Field(description="write what must follow without asking the model: never, single tokens, or any text"),
    ] = "text"
    close: Annotated[bool, Field(description="bring a call to its end before the maximum is reached")] = False


@register(
    Card(
        slug="tooldec",
        name="ToolDec",
        kind=Kind.CONSTRAINT,
        summary="Calls of tools without syntax errors: names along a trie, arguments by type, results in the text.",
        paper="Syntax Error-Free and Generalizable Tool Use for LLMs via Finite-State Decoding, 2023",
        claim="Syntax errors of tool calls fall to zero, and tools that were never seen are chosen by the meaning of "
        "their names, up to 8 times as often right as without.",
    ),
    ToolDecSettings,
)
class ToolDec(MatcherConstraint):
    """See the module.

    >>> lm.generate("Call a tool: what is 3 plus 4?", constraint=ToolDec.of([add, multiply]))        # doctest: +SKIP
    """

    settings: ToolDecSettings  # type: ignore[assignment]
    compiled: ToolMachine

    @classmethod
    def of(cls, tools: Sequence[Tool | Callable[..., Any] | Mapping[str, Any]] | str, **more: Any) -> ToolDec:
        """For functions, tools as JSON describes them, or the name of a file; ``more`` are settings.

        Raises:
            GrammarError: if one is no tool.
        """
        found = read_tools(tools) if isinstance(tools, str) else tools_of(tools)
        return cls(ToolDecSettings(tools=found, **more))

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of the settings.

        Raises:
            Incompatible: if there are none.
        """
        given = self.settings.tools
        if not given:
            raise Incompatible(
                "tooldec got no tools: pass constraint=ToolDec.of([function, ...]) in Python, or --tools tools.py:name "
                "on the command line"
            )
        return read_tools(given) if isinstance(given, str) else given

    @property
    def style(self) -> Style:
        told = self.settings
        if told.style == "json":
            return Style(told.trigger, "({", '"{}": ', ", ", "})", told.end)
        return Style(told.trigger, "(", "{}=", ", ", ")", told.end)

    def compile(self, vocabulary: Vocabulary) -> CompiledGrammar:
        return ToolMachine(
            vocabulary,
            self.tools,
            self.style,
            at_once=self.settings.when == "now",
            most=self.settings.calls,
            checked=self.settings.arguments,
            result=self.settings.result,
        )

    def calls_in(self, text: str) -> list[Called]:
        """The calls that stand whole in a generated text, with their results. Only after a composition was made."""
        return self.compiled.calls_in(text)

    # -- what the loop asks: a call that is only guessed is not made -------------------------------------------------

    def _may_run_on(self, branch: Branch, tokens: list[int], text: list[int]) -> bool:
        return tokens == branch.tokens or not self._awaits(branch, text)

    def prune(self, branch: Branch, draft: Draft) -> Draft:
        tree, kept, behind = draft.tree, [], set()
        for node, parent in enumerate(tree.parent_list):
            if parent in behind or self._awaits(branch, branch.tokens + tree.path_tokens(node)):
                behind.add(node)
            else:
                kept.append(node)
        return super().prune(branch, draft if len(kept) == len(tree) else draft.select(kept))

    def _awaits(self, branch: Branch, tokens: list[int]) -> bool:
        """Whether a call has just been completed, and nothing has been done about it."""
        track, stands = self._at(branch, tokens)
        matcher = track.matcher.inner if isinstance(track.matcher, FromStart) else track.matcher
        assert isinstance(matcher, ToolMatcher)
        return bool(stands) and matcher.awaits
