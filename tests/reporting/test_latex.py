"""LaTeX: what is written, and what a real compiler makes of it."""

import shutil
import subprocess

import pytest

from bench.reporting.formats.latex import PREAMBLE, escape, render_latex
from bench.reporting.leaderboard import leaderboards
from bench.reporting.table import table

from .conftest import NAMES, protocol_of

COMPILER, READER = shutil.which("lualatex"), shutil.which("pdftotext")


@pytest.fixture
def boards(make_run, store):
    """Two protocols, with all names that are hard."""
    for number, name in enumerate((*NAMES, "[1mm] first", "*")):
        store.ingest(
            make_run({"best": (150, 100, 60 - 5 * number), "last": (160, 90, 40)}, method=f"m{number}", label=name)
        )
    store.ingest(make_run({"best": (100,), "last": (90,)}, protocol=protocol_of(evaluation={"final": ["clean"]})))
    return leaderboards(store)


def test_the_text(boards):
    text = render_latex(boards)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") == 2
    (line,) = [line for line in text.split("\n") if "alert" in line]
    assert r"a\textbar{}b \& \textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} 5 \% &" in line
    assert "& 75.00 & 80.00 & $-$5.00 & 50.00 &" in line
    assert line.endswith(r"\\")
    assert r"\cmidrule(lr){4-6} \cmidrule(lr){7-9} \cmidrule(lr){10-13}" in text
    assert all(f"% {line}" in text for line in PREAMBLE.split("\n"))
    assert "تدريب خصومي" in text
    assert "对抗训练" in text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("\\{}#$%&_~^", r"\textbackslash{}\{\}\#\$\%\&\_\textasciitilde{}\textasciicircum{}"),
        ("1.00 ± 0.50 †‡§ – |<>", r"1.00 $\pm$ 0.50 \dag{}\ddag{}\S{} -- \textbar{}\textless{}\textgreater{}"),
        ("a--b ,, ---", r"a-\/-b ,\/, -\/-\/-"),
        ("\"'`", r"\textquotedbl{}\textquotesingle{}\textasciigrave{}"),
        ("对抗 é", "对抗 é"),
    ],
)
def test_escape(text, latex):
    assert escape(text) == latex


def test_deviations_are_typeset(make_run, store):
    for seed in range(2):
        store.ingest(make_run({"best": (150, 100, 50 + seed), "last": (160, 90, 40)}, seed=seed))
    assert r"50.50 $\pm$ 0.71 & 40.00 $\pm$ 0.00 & 10.50 $\pm$ 0.71 & 44.15--56.85" in render_latex(leaderboards(store))


@pytest.mark.skipif(COMPILER is None, reason="lualatex is not installed (Debian: texlive-luatex)")
def test_it_compiles_and_reads_as_written(boards, tmp_path):
    text = render_latex(boards)
    (tmp_path / "board.tex").write_text(text, encoding="utf-8")
    document = [line[2:] for line in text.split("\n") if line.startswith("% ")]
    document = document[document.index(r"\documentclass{article}") :]
    (tmp_path / "main.tex").write_text("\n".join(document), encoding="utf-8")
    command = [COMPILER, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=500, check=False
    )
    log = (tmp_path / "main.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Missing character" not in log
    assert "Overfull \\hbox" not in log
    if READER is None:
        pytest.skip("it compiles; pdftotext, which reads it back, is not installed (Debian: poppler-utils)")
    shown = subprocess.run([READER, "-layout", "main.pdf", "-"], cwd=tmp_path, capture_output=True, check=True)
    words = shown.stdout.decode().replace("−", "-")
    assert words.count("a|b & <script>alert(1)</script> 5 %") >= 1
    assert "two lines \\ {} # $ ^ ~ _x_ [y](z) `c` \"q\" 'p' --" in words.replace("”", '"')
    assert "对抗训练" in words
    assert "تدريب" in words
    assert "[1mm] first" in words
    for row in table(boards[0]).rows:
        assert " ".join(map(str, row[3:6])) in " ".join(words.split())


@pytest.mark.skipif(COMPILER is None, reason="lualatex is not installed (Debian: texlive-luatex)")
def test_papers_figures_compile(make_run, store, tmp_path):
    from bench.reporting.published import read_published
    from bench.reporting.published_comparison import compare_with_published

    protocol = protocol_of(dataset="cifar10", model="preact_resnet18")
    for method in ("pgd_at", "awp", "early_stopping"):
        store.ingest(make_run(protocol=protocol, method=method, label=f"[1mm] {method}"))
    text = render_latex(compare_with_published(leaderboards(store), [], read_published()))
    assert "Rice et al. 2020" in text
    assert "\n{}[1mm] pgd\\_at & Clean &" in text, "else it would be an argument of the line end before"
    lines = [PREAMBLE, r"\begin{document}", text, r"\end{document}"]
    (tmp_path / "main.tex").write_text("\n".join(lines), encoding="utf-8")
    command = [COMPILER, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
