"""A check as text: one line a figure for people, markdown for a pull request, JUnit XML for a CI server, plain data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from bench.errors import BenchError, printable
from bench.regression.gate import LEVEL, Check, Finding
from bench.reporting.formats.markdown import escape, escape_line

HEADINGS = ("row", "figure", "baseline", "now", "change", "p", "seeds", "verdict")


def verdict(found: Check, *, accept_improvements: bool = False) -> str:
    """Return the outcome of a check in one sentence."""
    code = found.exit_code(accept_improvements=accept_improvements)
    counts = [
        f"{len(found.regressions)} regressions" if len(found.regressions) != 1 else "1 regression",
        f"{len(found.improvements)} improvements" if len(found.improvements) != 1 else "1 improvement",
        *([f"{len(found.incomplete)} not judged"] if found.incomplete else []),
        f"{len(found.findings)} figures",
    ]
    head = {0: "no regression", 1: "regression", 4: "incomplete"}[code]
    if code == 1 and not found.regressions:
        head = "unexplained improvement"
    return f"{found.suite}: {head} ({', '.join(counts)})"


def rules(found: Check) -> str:
    """Return in one sentence what counts as a change."""
    return (
        f"A figure has changed if it moved by more than {found.tolerance:g} points and its p, adjusted for all figures "
        f"by Holm's method, is at most {LEVEL:g}."
    )


def remarks(found: Check) -> list[str]:
    """Return whatever else a reader must know, one sentence each."""
    return [
        *(f"missing: {what}" for what in found.missing),
        *(f"{finding.row}, {finding.figure}: {finding.why}" for finding in found.findings if finding.why),
        *(f"new: {label} is not in the baseline; --update adds it" for label in found.new),
        *(
            [
                "an attack that has become weaker looks like an improvement: if these are meant, make a new baseline "
                "with --update, or let them pass with --accept-improvements"
            ]
            if any(finding.suspicious for finding in found.improvements)
            else []
        ),
        *found.notes,
    ]


def cells(finding: Finding) -> tuple[str, ...]:
    """Return a finding as texts under `HEADINGS`; accuracies in percent."""
    before, now = ("–" if share is None else f"{100 * share:.2f}" for share in (finding.baseline, finding.run))
    p = "–" if finding.adjusted is None else "<0.0001" if finding.adjusted < 1e-4 else f"{finding.adjusted:.4f}"
    seeds = f"{finding.seeds[0]}, {finding.seeds[1]}"
    return (finding.row, finding.figure, before, now, f"{100 * finding.change:+.2f}", p, seeds, finding.verdict)


def ordered(found: Check) -> list[Finding]:
    """Return the findings, those that changed or could not be judged first."""
    order = ("regression", "improvement", "not judged", "unchanged")
    return sorted(found.findings, key=lambda finding: order.index(finding.verdict))


def as_data(found: Check, *, accept_improvements: bool = False) -> dict[str, Any]:
    """Return a check as JSON data; accuracies and changes are shares from 0 to 1."""
    return {
        "exit_code": found.exit_code(accept_improvements=accept_improvements),
        "verdict": verdict(found, accept_improvements=accept_improvements),
        "level": LEVEL,
        **asdict(found),
    }


# --- markdown --------------------------------------------------------------------------------------------------------


def markdown(found: Check, *, accept_improvements: bool = False) -> str:
    """Return a summary for a pull request: what changed in a table, the rest folded away."""
    changed = [finding for finding in ordered(found) if finding.verdict != "unchanged"]
    same = [finding for finding in ordered(found) if finding.verdict == "unchanged"]
    parts = [f"### {escape_line(printable(verdict(found, accept_improvements=accept_improvements)))}"]
    if changed:
        parts.append(_markdown_table(changed))
    parts.append("\n".join(f"- {escape_line(printable(remark))}" for remark in (*remarks(found), rules(found))))
    if same:
        parts.append(
            f"<details><summary>{len(same)} figures did not change</summary>\n\n{_markdown_table(same)}\n\n</details>"
        )
    return "\n\n".join(parts) + "\n"


def markdown_error(error: BenchError) -> str:
    """Return the summary of a check that could not be made."""
    return f"### bench check\n\n{escape_line(str(error))}\n"


def _markdown_table(findings: Sequence[Finding]) -> str:
    rows = ([escape(printable(cell)) for cell in cells(finding)] for finding in findings)
    lines = [HEADINGS, ("---", "---", *["---:"] * 5, "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- JUnit -----------------------------------------------------------------------------------------------------------


def junit(found: Check, *, accept_improvements: bool = False) -> str:
    """Return JUnit XML: a test case for each figure, with a failure, an error for what is missing, a skip for new rows.

    The elements and attributes are those of the schema that Jenkins publishes (jenkins-junit.xsd).
    """
    suite = ElementTree.Element("testsuite")
    for finding in found.findings:
        case = _case(suite, found, finding.row, finding.figure)
        if finding.verdict == "regression" or (
            finding.verdict == "improvement" and finding.suspicious and not accept_improvements
        ):
            texts = dict(zip(HEADINGS, cells(finding), strict=True))
            message = finding.why or f"{texts['baseline']} -> {texts['now']} ({texts['change']} points, p {texts['p']})"
            ElementTree.SubElement(case, "failure", message=_xml(message), type=finding.verdict).text = _xml(
                rules(found)
            )
        elif finding.verdict == "not judged":
            ElementTree.SubElement(case, "error", message=_xml(finding.why), type="not judged")
    for what in found.missing:
        ElementTree.SubElement(_case(suite, found, "missing", what), "error", message=_xml(what), type="missing")
    for label in found.new:
        ElementTree.SubElement(_case(suite, found, label, "new row"), "skipped", message="not in the baseline")
    return _document(suite, f"bench check {found.suite}", "\n".join(remarks(found)))


def junit_error(name: str, error: BenchError) -> str:
    """Return JUnit XML of a check that could not be made: one test case, which is an error."""
    suite = ElementTree.Element("testsuite")
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(f"bench.{name}"), name="check", time="0")
    ElementTree.SubElement(case, "error", message=_xml(str(error)), type=type(error).__name__)
    return _document(suite, f"bench check {name}", "")


def _case(suite: ElementTree.Element, found: Check, row: str, figure: str) -> ElementTree.Element:
    # Without dots, which viewers take for the ends of packages.
    name = _xml(f"{found.suite}.{row.replace('.', ' ')}")
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
