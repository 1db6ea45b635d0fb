"""The page about compact students on the mini world shows what its runs' own files say."""

from pathlib import Path

from dho_plugin.tables import main

DOCS = Path(__file__).parents[1] / "docs"


def printed(capsys, folder, *words):
    """The tables that the command on the page prints of stored runs."""
    assert main([str(DOCS / folder), "--wide", "--heads", "--format", "markdown", *words]) == 0
    return capsys.readouterr().out.rstrip("\n").split("\n\n")


def test_the_tables_are_those_of_the_stored_runs(capsys):
    page = (DOCS / "MINI_STUDENTS.md").read_text()
    for folder in ("mini_students", "mini_students_48_epochs"):
        for table in printed(capsys, folder, "--paired")[:2]:
            assert table in page


def test_no_stored_run_tells_where_it_was_made():
    texts = [path.read_text() for path in DOCS.rglob("results.json")]
    assert texts
    assert not any('"/' in text for text in texts)
