"""The README is tested: its commands are what CI runs, its blocks run, its links exist, its numbers are measured."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)( no-run)?\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(capsys):
    for language, skipped, code in BLOCKS:
        if language == "python" and not skipped:
            exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.9


def test_blocks_that_are_not_run_compile():
    assert [compile(code, "README.md", "exec") for language, skipped, code in BLOCKS if skipped]


def test_ci_runs_the_very_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    commands = [line for language, _, code in BLOCKS for line in code.splitlines() if line.startswith("pip install")]
    assert commands == ['pip install -e ".[all]" && sktransfer demo', 'pip install -e ".[test]" && pytest']
    assert "grep -m1 '^pip install .*pytest$' README.md" in script
    assert "grep -m1 '^pip install .*sktransfer demo$' README.md" in script


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_stays_short():
    assert len(README.splitlines()) < 200


def test_the_quality_table_is_the_measured_one():
    measured = (ROOT / "benchmarks" / "results" / "quality.md").read_text("utf-8")
    rows = [line for line in README.splitlines() if re.match(r"\| [a-z].* \| 0\.\d{3} \|", line)]
    assert len(rows) == 8
    assert [row for row in rows if row not in measured] == []


def test_the_table_of_few_labels_is_the_measured_one():
    measured = (ROOT / "benchmarks" / "results" / "transfer.md").read_text("utf-8").splitlines()
    found = [line.strip("| ").split(" | ") for line in measured if line.startswith("| mobilenetv2_features")]
    expected = [f"| {k} | {source[:5]} | {scratch[:5]} | {pulled} |" for _, k, source, scratch, _, pulled, *_ in found]
    assert len(expected) == 4
    assert [row for row in expected if row not in README] == []
