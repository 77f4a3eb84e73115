"""A check as text, one line per figure; Markdown for a pull request; JUnit XML for a CI server; JSON data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from bench.errors import BenchError, printable
from bench.regression.gate import LEVEL, Change, Check
from bench.reporting.formats.markdown import escape, escape_line

HEADINGS = ("row", "figure", "baseline", "now", "change", "p", "seeds", "verdict")


def conclusion(result: Check, *, accept_improvements: bool = False) -> str:
    """Return the outcome of a check in one sentence."""
    code = result.exit_code(accept_improvements=accept_improvements)
    counts = [
        f"{len(result.regressions)} regressions" if len(result.regressions) != 1 else "1 regression",
        f"{len(result.improvements)} improvements" if len(result.improvements) != 1 else "1 improvement",
        *([f"{len(result.incomplete)} not judged"] if result.incomplete else []),
        f"{len(result.findings)} figures",
    ]
    head = {0: "no regression", 1: "regression", 4: "incomplete"}[code]
    if code == 1 and not result.regressions:
        head = "unexplained improvement"
    return f"{result.suite}: {head} ({', '.join(counts)})"


def rules(result: Check) -> str:
    """Return in one sentence what counts as a change."""
    return (
        f"A figure has changed if it moved by more than {result.tolerance:g} points and its p, adjusted for all "
        f"figures by Holm's method, is at most {LEVEL:g}."
    )


def remarks(result: Check) -> list[str]:
    """Return what is missing, unexplained or new, and the notes, one sentence each."""
    return [
        *(f"missing: {what}" for what in result.missing),
        *(f"{finding.row}, {finding.figure}: {finding.why}" for finding in result.findings if finding.why),
        *(f"new: {label} is not in the baseline; --update adds it" for label in result.new),
        *(
            [
                "a weaker attack looks like an improvement: if it is intended, create a new baseline with --update, or "
                "accept it once with --accept-improvements"
            ]
            if any(finding.suspicious for finding in result.improvements)
            else []
        ),
        *result.notes,
    ]


def cells(finding: Change) -> tuple[str, ...]:
    """Return a figure as texts under `HEADINGS`; accuracies in percent."""
    before, now = ("–" if share is None else f"{100 * share:.2f}" for share in (finding.baseline, finding.run))
    p = "–" if finding.adjusted is None else "<0.0001" if finding.adjusted < 1e-4 else f"{finding.adjusted:.4f}"
    seeds = f"{finding.seeds[0]}, {finding.seeds[1]}"
    return (finding.row, finding.figure, before, now, f"{100 * finding.change:+.2f}", p, seeds, finding.verdict)


def ordered(result: Check) -> list[Change]:
    """Return the figures, those that changed or could not be tested first."""
    order = ("regression", "improvement", "not judged", "unchanged")
    return sorted(result.findings, key=lambda finding: order.index(finding.verdict))


def as_data(result: Check, *, accept_improvements: bool = False) -> dict[str, Any]:
    """Return a check as JSON data; accuracies and changes are shares from 0 to 1."""
    return {
        "exit_code": result.exit_code(accept_improvements=accept_improvements),
        "verdict": conclusion(result, accept_improvements=accept_improvements),
        "level": LEVEL,
        **asdict(result),
    }


# --- markdown --------------------------------------------------------------------------------------------------------


def markdown(result: Check, *, accept_improvements: bool = False) -> str:
    """Return a summary for a pull request: a table of what changed, the rest folded."""
    changed = [finding for finding in ordered(result) if finding.verdict != "unchanged"]
    same = [finding for finding in ordered(result) if finding.verdict == "unchanged"]
    parts = [f"### {escape_line(printable(conclusion(result, accept_improvements=accept_improvements)))}"]
    if changed:
        parts.append(_markdown_table(changed))
    parts.append("\n".join(f"- {escape_line(printable(remark))}" for remark in (*remarks(result), rules(result))))
    if same:
        parts.append(
            f"<details><summary>{len(same)} figures did not change</summary>\n\n{_markdown_table(same)}\n\n</details>"
        )
    return "\n\n".join(parts) + "\n"


def markdown_error(error: BenchError) -> str:
    """Return the summary of a check that failed with an error."""
    return f"### bench check\n\n{escape_line(str(error))}\n"


def _markdown_table(findings: Sequence[Change]) -> str:
    rows = ([escape(printable(cell)) for cell in cells(finding)] for finding in findings)
    lines = [HEADINGS, ("---", "---", *["---:"] * 5, "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- JUnit -----------------------------------------------------------------------------------------------------------


def junit(result: Check, *, accept_improvements: bool = False) -> str:
    """Return JUnit XML: a test case for each figure, with a failure, an error for what is missing, a skip for new rows.

    The elements and attributes are those of the schema that Jenkins publishes (jenkins-junit.xsd).
    """
    suite = ElementTree.Element("testsuite")
    for finding in result.findings:
        case = _case(suite, result, finding.row, finding.figure)
        if finding.verdict == "regression" or (
            finding.verdict == "improvement" and finding.suspicious and not accept_improvements
        ):
            texts = dict(zip(HEADINGS, cells(finding), strict=True))
            message = finding.why or f"{texts['baseline']} -> {texts['now']} ({texts['change']} points, p {texts['p']})"
            ElementTree.SubElement(case, "failure", message=_xml(message), type=finding.verdict).text = _xml(
                rules(result)
            )
        elif finding.verdict == "not judged":
            ElementTree.SubElement(case, "error", message=_xml(finding.why), type="not judged")
    for what in result.missing:
        ElementTree.SubElement(_case(suite, result, "missing", what), "error", message=_xml(what), type="missing")
    for label in result.new:
        ElementTree.SubElement(_case(suite, result, label, "new row"), "skipped", message="not in the baseline")
    return _document(suite, f"bench check {result.suite}", "\n".join(remarks(result)))


def junit_error(name: str, error: BenchError) -> str:
    """Return JUnit XML of a check that failed with an error: one test case, which is an error."""
    suite = ElementTree.Element("testsuite")
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(f"bench.{name}"), name="check", time="0")
    ElementTree.SubElement(case, "error", message=_xml(str(error)), type=type(error).__name__)
    return _document(suite, f"bench check {name}", "")


def _case(suite: ElementTree.Element, result: Check, row: str, figure: str) -> ElementTree.Element:
    # Without dots, which viewers take for the ends of packages.
    name = _xml(f"{result.suite}.{row.replace('.', ' ')}")
    return ElementTree.SubElement(suite, "testcase", classname=name, name=_xml(figure), time="0")


def _document(suite: ElementTree.Element, name: str, output: str) -> str:
    counts = {kind: str(len(suite.findall(f"testcase/{kind}"))) for kind in ("failure", "error", "skipped")}
    suite.attrib = {
        "name": _xml(name),
        "tests": str(len(suite)),
        "failures": counts["failure"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
        "time": "0",
    }
    if output:
        ElementTree.SubElement(suite, "system-out").text = _xml(output)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Return `text` without the characters that XML 1.0 cannot hold; the rest is escaped where it is written."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)
