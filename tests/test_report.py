"""The report: what stands in it, what it leaves out and why, and how a browser shows it."""

import html
import json
import re
import shutil
import subprocess

import pytest

from dho_plugin.analysis.style import draw, slugs, to_svg
from dho_plugin.findings import find
from dho_plugin.report import main, write_report
from dho_plugin.results import find_results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
FIGURES = ("accuracy", "confidence", "reliability", "agreement", "error-reduction", "surface", "losses")
# What a page says of itself, written into it before the browser prints it.
WATCH = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(e.message || "a resource: " + (e.target.src || e.target.href)), true);
console.error = console.warn = (...words) => problems.push(words.join(" "));
</script>"""
TELL = """<script>
document.querySelectorAll("details").forEach((e) => { e.open = true; });
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".wide, svg")
    && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.tagName + " " + e.textContent.slice(0, 40));
  const empty = [...document.querySelectorAll("figure")].filter((e) => {
    const box = e.querySelector("svg").getBoundingClientRect();
    return box.width < 200 || box.height < 60 || !e.querySelector("svg path, svg use, svg text");
  }).map((e) => e.textContent);
  const found = {width: innerWidth, scroll: document.documentElement.scrollWidth, wide, empty, problems};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
# A window is at least 500 pixels wide; a frame can be as narrow as a phone.
FRAME = """<!doctype html><script>
addEventListener("message", (e) => { document.body.textContent = "found:" + e.data + ":found"; });
</script><body><iframe src="watched.html" style="border:0;width:WIDTHpx;height:900px"></iframe></body>"""


@pytest.fixture(scope="module")
def runs(write_run, tmp_path_factory):
    """Three seeds with two heads and validation images, and two with one head: 7 classes."""
    folder = tmp_path_factory.mktemp("runs")
    sets = {"val": 60, "imagenetv2": 40, "imagenet_sketch": 40, "imagenet_r": 40, "imagenet_a": 40}
    for seed in (1, 2, 3):
        write_run(folder / f"two/seed{seed}", sets, 7, seed=seed, validation=30)
    for seed in (1, 2):
        write_run(folder / f"one/seed{seed}", sets, 7, seed=seed, heads=1)
    return folder


@pytest.fixture(scope="module")
def page(runs):
    """The report of these runs, beside them."""
    return write_report([runs], runs / "report.html")


def text_of(path):
    return html.unescape(path.read_text(encoding="utf-8"))


def section(path, slug):
    """Return the part of a page that shows a row."""
    parts = re.split(r'<details id="', text_of(path))
    return next(part for part in parts if part.startswith(f'{slug}"'))


def test_nothing_comes_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert not re.findall(r"@import|url\((?!#)|<(?:link(?! rel=\"icon\")|iframe|object|img)\b", text)
    assert "http-equiv" not in text
    outside = {url for url in re.findall(r'https?://[^"\s<)]+', text) if not url.startswith("http://www.w3.org/")}
    assert not outside


def test_every_figure_is_there_and_no_id_twice(page):
    text = page.read_text(encoding="utf-8")
    for name in FIGURES:
        assert f'id="vpt-3-dho-unlabeled-{name}-' in text, name
    for name in ("cosines", "discrepancy", "eigenvalue", "inner"):
        assert f'id="vpt-3-dho-unlabeled-gradients-{name}-' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert target in ids, target


def test_table_tests_heads_and_cost_are_those_of_the_files(runs, page):
    text = text_of(page)
    results = [json.loads((runs / f"two/seed{seed}/results.json").read_text()) for seed in (1, 2, 3)]
    mean = sum(result["metrics"]["val"]["accuracy"] for result in results) / 3
    assert f"{mean:.1f} ±" in text
    assert "DHO unlabeled - base" in text
    row = section(page, "vpt-3-dho-unlabeled")
    for head in ("ce_head_accuracy", "kd_head_accuracy", "accuracy"):
        mean = sum(result["metrics"]["imagenetv2"][head] for result in results) / 3
        assert f"<td>{mean:.1f}</td>" in row.split("<td>V2</td>")[1].split("</tr>")[0], head
    assert "<td>101</td><td>3.0</td><td>1,001</td>" in row
    assert "n = 60 images x 3 seeds" in row


def test_every_axis_says_what_how_much_and_of_how_many(page):
    row = section(page, "vpt-3-dho-unlabeled")
    for label in ("accuracy (%), n = 3 runs", "answers (%)", "n = 60 images", "n = 30 images"):
        assert label in row
    assert row.count("training step (n = 3 seeds)") == 6


def test_links_lead_to_the_runs_files(runs, page):
    links = re.findall(r'href="([^"#]+results\.json)"', page.read_text(encoding="utf-8"))
    assert len(links) == 5
    assert all((page.parent / link).is_file() for link in links)


def test_numbers_in_figures_are_whole(tmp_path):
    def paint(axes):
        axes.plot([0, 0.0035])
        axes.set_yticks([0.00125, 0.00375])
        axes.set_title("37.125%")

    svg = to_svg(draw(paint), "one", "a figure")
    assert "37.125%" in svg
    assert "0.00125" in svg
    assert not re.search(r'points="[^"]*\d\.\d{3}', svg)
    assert not re.search(r' d="[^"]*\d\.\d{3}', svg)


def test_names_become_ids_that_differ_and_hold_no_code():
    names = ["фото", "тест", 'x" onload="alert(1)', "A b", "a-b", "row 2"]
    assert slugs(names) == ["row", "row-2", "x-onload-alert-1", "a-b", "a-b-2", "row-2-2"]


def test_one_run_without_logits_leaves_the_others(write_run, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"two/seed{seed}", {"val": 60}, 7, seed=seed, validation=30)
    shutil.rmtree(tmp_path / "two/seed1/logits")
    (tmp_path / "two/seed2/logits/validation.safetensors").write_bytes(b"damaged")
    page = text_of(write_report([tmp_path], tmp_path / "report.html"))
    assert "Left out" in page
    assert "alpha-beta surface, of seed2" in page
    (found,) = find(find_results([tmp_path]))
    assert found.cases()


def test_class_names_are_escaped(page):
    assert "class 1 <of> 7" not in page.read_text(encoding="utf-8")
    assert "class 1 <of> 7" in text_of(page)


def test_a_single_head_says_what_it_lacks(page):
    row = section(page, "vpt-3")
    assert "the model has no second head" in row
    assert "not recorded (TRAINER.DHO.PROBE_GRADIENTS is 0)" in row
    assert "agreement-" not in row


def test_what_runs_do_not_allow_has_its_reason(write_run, tmp_path):
    write_run(tmp_path / "runs/a", {"test": 20}, 2)
    run = write_run(tmp_path / "runs/b", {"test": 20}, 2, config_name="other")
    for path in (run / "logits").iterdir():
        path.unlink()
    shutil.rmtree(run / "tensorboard")
    result = json.loads((run / "results.json").read_text())
    result["config"]["TEST"]["SHIFTED"] = ["ImageNetA"]
    (run / "results.json").write_text(json.dumps(result))
    text = text_of(write_report([tmp_path / "runs"], tmp_path / "out" / "page.html"))
    for reason in (
        "no stored validation logits",
        "holds no stored logits",
        "hold no tensorboard files",
        "test set ImageNetA: not on disk when the run was tested",
        "Nothing to compare",
    ):
        assert reason in text, reason


def test_one_zero_shot_run(write_run, tmp_path):
    changes = {"trainer": "ZeroshotCLIP", "method": "CLIP zero-shot", "shots": None}
    run = write_run(tmp_path / "run", {"test": 20}, 3, heads=1, **changes)
    shutil.rmtree(run / "tensorboard")
    text = text_of(write_report([tmp_path], tmp_path / "page.html"))
    assert "nothing was trained" in text


def test_command_line(runs, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    out = tmp_path / "a report.html"
    assert main([str(runs / "one"), "--out", str(out), "--open"]) == 0
    assert opened == [out.resolve().as_uri()]
    assert str(out) in capsys.readouterr().out
    assert main([str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "there is no folder" in capsys.readouterr().err


def browse(page, folder, width, *flags):
    """Return what a browser finds on a page of some width, with everything unfolded."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1).replace("</body>", TELL + "</body>")
    (folder / "watched.html").write_text(text, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(html.unescape(re.search(r"found:({.*}):found", done.stdout, re.DOTALL)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (on Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "flags"), [(390, ()), (1280, ("--blink-settings=preferredColorScheme=0",))])
def test_a_browser_shows_it_all(page, tmp_path, width, flags):
    found = browse(page, tmp_path, width, *flags)
    assert found == {"width": width, "scroll": width, "wide": [], "empty": [], "problems": []}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (on Debian: apt-get install chromium)")
def test_the_browser_s_test_can_fail(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><html><head></head><body><div style="width:2000px">wide</div><figure><svg width="9"></svg>empty'
        '</figure><img src="missing.png"><script>console.error("said"); undefined_name();</script></body></html>'
    )
    found = browse(page, tmp_path, 500)
    assert found["scroll"] == 2008
    assert found["wide"] == ["DIV wide"]
    assert found["empty"] == ["empty"]
    assert len(found["problems"]) == 3
