"""The prompts of before: the newest first, each once, no more than twenty, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from blender_addon.prompt_history import MOST, PromptHistory


def test_they_outlive_a_session(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "prompts.json"
    first = PromptHistory(lambda: file)
    assert first.prompts == () and not file.exists()
    for prompt in ("a chair", "  a\n table ", "a chair", "", "a chair"):
        first.add(prompt)
    assert first.prompts == ("a chair", "a table")
    assert PromptHistory(lambda: file).prompts == ("a chair", "a table")


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    history = PromptHistory(lambda: tmp_path / "prompts.json")
    for number in range(MOST + 5):
        history.add(f"prompt {number}")
    assert len(history.prompts) == MOST == 20
    assert history.prompts[0] == "prompt 24" and history.prompts[-1] == "prompt 5"


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', '[1, null, "a chair", ""]', "\xff"])
def test_a_broken_file_costs_the_history_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content, encoding="latin-1")
    history = PromptHistory(lambda: file)
    assert history.prompts in ((), ("a chair",))
    history.add("a lamp")
    assert PromptHistory(lambda: file).prompts[0] == "a lamp"


def test_no_place_for_it() -> None:
    def nowhere() -> Path:
        raise PermissionError("no")

    history = PromptHistory(nowhere)
    history.add("a chair")
    assert history.prompts == ("a chair",)
