"""The page about compact students on the mini world shows what its runs' own files say."""

from pathlib import Path

from dho_plugin.tables import main

DOCS = Path(__file__).parents[1] / "docs"


def test_the_tables_are_those_of_the_stored_runs(capsys):
    words = ["--wide", "--heads", "--paired", "--format", "markdown"]
    assert main([str(DOCS / "mini_students"), *words]) == 0
    page, (rows, differences, _) = (DOCS / "MINI_STUDENTS.md").read_text(), capsys.readouterr().out.split("\n\n")
    assert rows in page
    assert differences in page


def test_no_stored_run_tells_where_it_was_made():
    texts = [path.read_text() for path in (DOCS / "mini_students").rglob("results.json")]
    assert texts
    assert not any('"/' in text for text in texts)
