"""The report: its warnings on good and bad fits, and its page, in a browser too."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scanpy_scvipyro as scvip
from scanpy_scvipyro import _select
from scanpy_scvipyro.pl import _integration, _report_content, _report_page

pytestmark = pytest.mark.usefixtures("no_windows")
NASTY = "<script>alert('batch')</script> & co"


def written(adata, path, **arguments):
    scvip.pl.report(adata, path=path, max_cells=300, **arguments)
    return path.read_text(encoding="utf-8")


def warnings_of(adata, tmp_path, **arguments):
    """Titles and texts of the warnings on the page."""
    page = written(adata, tmp_path / "report.html", **arguments)
    found = re.findall(r'<article class="finding">\s*<h3>(.*?)</h3>(.*?)</article>', page, flags=re.DOTALL)
    assert ("All checks passed" in page) == (not found)
    return {html.unescape(title): html.unescape(text) for title, text in found}


class Page(HTMLParser):
    """Tags with their attributes, in order, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + " "

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(_trained, tmp_path_factory):
    """Report on a good fit, with a batch whose name is code."""
    adata = _trained.copy()
    known = adata.uns["scvi_pyro"]["categories"]["batch"]
    adata.uns["scvi_pyro"]["categories"]["batch"] = np.where(known == "10x_3cl", NASTY, known)
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"10x_3cl": NASTY})
    return written(adata, tmp_path_factory.mktemp("report") / "page.html", labels_key="cell_type")


class TestWarnings:
    def test_a_good_fit_has_none(self, trained, tmp_path):
        assert warnings_of(trained, tmp_path, labels_key="cell_type") == {}

    def test_a_good_fit_has_none_without_labels(self, trained, tmp_path):
        assert warnings_of(trained, tmp_path) == {}

    def test_training_that_was_too_short_has_not_converged(self, mixtures, tmp_path):
        scvip.tl.scvi_pyro(mixtures, batch_key="batch", max_epochs=3, progress_bar=False)
        assert "Training has not converged" in warnings_of(mixtures, tmp_path)

    def test_codes_that_hold_nothing_and_are_worth_nothing_are_told(self, trained, tmp_path):
        stored = trained.uns["scvi_pyro"]
        stored["elbo_without_codes"] = stored["history"]["validation_elbo"].iloc[-1] + 5
        for name in ("encoder.loc.weight", "encoder.loc.bias"):
            stored["weights"][name] = np.zeros_like(stored["weights"][name])
        found = warnings_of(trained, tmp_path)
        assert "They tell 0.00 nats per cell" in found["The latent codes hold next to nothing"]
        assert "The model is worse than one without latent codes" in found

    def test_training_by_heart_overfits(self, mixtures, tmp_path):
        few = mixtures[::9].copy()
        scvip.tl.scvi_pyro(few, batch_key="batch", max_epochs=250, train_size=0.5, progress_bar=False)
        assert "The model overfits" in warnings_of(few, tmp_path)

    def test_a_model_without_batches_does_not_mix_them(self, mixtures, tmp_path):
        scvip.tl.scvi_pyro(mixtures, max_epochs=30, progress_bar=False)
        found = warnings_of(mixtures, tmp_path, batch_key="batch")
        assert "10x_3cl" in found["Batches are not mixed"]
        assert "Batches are not mixed" not in warnings_of(mixtures, tmp_path)

    def test_cell_types_removed_as_batches_are_over_corrected(self, mixtures, tmp_path):
        mixtures.obs["plate"] = mixtures.obs["cell_type"].astype(str)
        forced = {"encoder_input": "log_counts", "prior": "normal", "batch_offset": 1}
        scvip.tl.scvi_pyro(mixtures, batch_key="plate", max_epochs=30, progress_bar=False, **forced)
        found = warnings_of(mixtures, tmp_path, labels_key="cell_type")
        assert "H2228 (from 100% to " in found["Over-correction suspected"]

    def test_codes_without_meaning_tell_cells_hardly_apart(self, trained, tmp_path):
        shape = trained.obsm["X_scvi_pyro"].shape
        trained.obsm["X_scvi_pyro"] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        assert "The latent codes tell cells hardly apart" in warnings_of(trained, tmp_path)

    def test_a_spoilt_batch_and_spoilt_genes_are_named(self, mixtures, tmp_path):
        rng = np.random.default_rng(0)
        counts, batch = mixtures.X.toarray(), mixtures.obs["batch"] == "dropseq_3cl"
        counts[batch] = rng.permuted(counts[batch], axis=1)
        counts[:, 0] = 10
        counts[:, 1] = np.where(rng.random(mixtures.n_obs) < 0.5, 50, 0)
        mixtures.X = sparse.csr_matrix(counts)
        scvip.tl.scvi_pyro(mixtures, batch_key="batch", max_epochs=40, progress_bar=False)
        found = warnings_of(mixtures, tmp_path)
        assert re.search(r": dropseq_3cl \(\+\d+\.\d%\)\.", found["A batch is fitted badly"])
        (genes,) = (text for title, text in found.items() if "genes are fitted badly" in title)
        assert re.search(r"Worst: A1BG-AS1 \(variance 0, expected .*AADAT \(share of zeros \d\d%, expected", genes)


class TestPage:
    def test_pictures_are_inside_and_have_words(self, page):
        pictures = Page(page).all("img")
        assert len(pictures) == 3 + 4 + 3
        assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
        assert len({picture["src"] for picture in pictures}) == len(pictures)
        assert all(len(picture["alt"]) > 10 for picture in pictures)

    def test_nothing_is_fetched(self, page):
        tags = Page(page).tags
        links = [value for _, attributes in tags for name, value in attributes.items() if name in {"src", "href"}]
        assert all(link.startswith(("data:", "#")) for link in links)
        assert "url(" not in page
        assert "@import" not in page
        assert not Page(page).all("script")

    def test_names_from_the_data_are_text(self, page):
        assert NASTY in Page(page).text
        assert NASTY not in page

    def test_headings_go_down_one_level_at_a_time(self, page):
        levels = [int(tag[1]) for tag, _ in Page(page).tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_sections_are_linked(self, page):
        parsed = Page(page)
        ids = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
        targets = [link["href"].removeprefix("#") for link in parsed.all("a")]
        assert targets
        assert set(targets) <= ids

    def test_what_was_trained_is_told(self, page, trained):
        text = re.sub(r"\s+", " ", Page(page).text)
        elbo = trained.uns["scvi_pyro"]["history"]["validation_elbo"]
        for words in (
            "1,345 cells and 701 genes",
            "those of 300 of the cells, drawn at random",
            "3 in 'batch'",
            f"{len(elbo)} epochs, 90% of the cells",
            f"{elbo.iloc[-1]:.1f} nats per cell at the end",
            "n_latent 10",
            f"scanpy-scvipyro {scvip.__version__}",
        ):
            assert words in text, words

    def test_every_batch_has_a_row(self, page):
        rows = [re.sub(r"<.*?>", " ", row).split() for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", page)]
        cells = {row[0]: row[1] for row in rows}
        assert (cells["celseq2_3cl"], cells["dropseq_3cl"]) == ("240", "210")


def test_a_batch_of_which_no_cell_is_shown_shifts_no_other(trained_small):
    trained_small.obs["sample"] = trained_small.obs["batch"].astype(str)
    trained_small.obs.iloc[:2, trained_small.obs.columns.get_loc("sample")] = "0_rare"
    columns = _integration.Columns("sample", None)
    # A seed whose 60 of 90 cells leave out both rare ones.
    seed = next(s for s in range(100) if _select.random_cells(90, 60, s)[0] > 1)
    content = _report_content.gather(trained_small, "scvi_pyro", columns, None, 60, None, seed)
    shown = content.cells.obs["sample"].astype(str).to_numpy()
    assert "0_rare" not in shown
    assert content.batches.loc["0_rare"].isna().tolist() == [False, False, True, True, True]
    for name in np.unique(shown):
        expected = content.scores["after"].same_batch[shown == name].mean()
        assert content.batches.loc[name, "same-batch neighbours"] == pytest.approx(expected)
    assert not [text for row in _report_page._batch_rows(content.batches) for text in row if "nan" in text]


def test_reports_leave_the_data_unchanged(trained, unchanged, tmp_path):
    before = trained.copy()
    written(trained, tmp_path / "report.html", labels_key="cell_type")
    unchanged(trained, before)


def test_the_same_seed_writes_the_same_page(trained_small, tmp_path):
    pages = [written(trained_small, tmp_path / f"{i}.html", random_state=1) for i in range(2)]
    assert pages[0] == pages[1]


def test_a_model_without_batches_and_labels_is_reported_too(small, train_quickly, tmp_path):
    train_quickly(small, mask_var=np.arange(small.n_vars) < 30, train_size=1.0)
    page = Page(written(small, tmp_path / "report.html"))
    assert len(page.all("img")) == 3 + 2 + 3
    assert "30 of 40" in page.text
    assert "all cells" in page.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "nowhere/report.html"}, FileNotFoundError, "in a directory that does not exist"),
        ({"path": "."}, IsADirectoryError, "path='.' is a directory; name a file in it"),
        ({"key": "scvi"}, KeyError, "key='scvi' is not in adata.uns"),
        ({"labels_key": "celltype"}, KeyError, "Did you mean 'cell_type'"),
        ({"max_cells": 19}, ValueError, "max_cells=19 was passed; pass a whole number of at least 20"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(trained_small, arguments, error, message, empty_directory):
    with pytest.raises(error, match=message):
        scvip.pl.report(trained_small, **arguments)
    assert not list(empty_directory.iterdir())


def test_few_cells_are_refused_with_the_number_that_is_needed(trained_small, tmp_path):
    with pytest.raises(ValueError, match="adata has 19 cells; at least 20 are needed"):
        scvip.pl.report(trained_small[:19].copy(), path=tmp_path / "report.html")
    scvip.pl.report(trained_small[:20].copy(), path=tmp_path / "report.html")


@pytest.fixture
def browse(tmp_path):
    """Open HTML in a browser without a window: what the page is then like, and what went to its console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a browser: no chromium, chromium-browser or google-chrome in PATH")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]

    def opened(text):
        (tmp_path / "opened.html").write_text(text, encoding="utf-8")
        profile, address = f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "opened.html").as_uri()
        command = [browser, *options, profile, "--dump-dom", address]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
        return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]

    return opened


FRAMES = """<!DOCTYPE html><title>waiting</title>
<iframe style="width:1280px;height:9000px" srcdoc="{page}"></iframe>
<iframe style="width:390px;height:9000px" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const root = frame.contentDocument.documentElement;
    return {{
      inside: root.clientWidth,
      needed: root.scrollWidth,
      broken: [...root.querySelectorAll("img")].filter(image => !image.naturalWidth).length,
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
    }};
  }}));
}};
</script>"""


def test_a_browser_shows_the_page_at_desktop_and_phone_width(page, browse):
    dom, console = browse(FRAMES.format(page=html.escape(page)))
    desktop, phone = json.loads(html.unescape(re.search(r"<title>(\[.*?\])</title>", dom)[1]))
    assert console == []
    assert 1200 < desktop["inside"] <= 1280
    assert 350 < phone["inside"] <= 390
    for view in (desktop, phone):
        assert view["needed"] <= view["inside"]
        assert (view["broken"], view["fetched"]) == (0, [])


def test_a_browser_would_tell_of_errors_and_wide_pages(browse):
    bad = '<body><div style="width:2000px">wide</div><img src="data:,"><script>missing()</script></body>'
    dom, console = browse(FRAMES.format(page=html.escape(bad)))
    desktop, _ = json.loads(html.unescape(re.search(r"<title>(\[.*?\])</title>", dom)[1]))
    assert any("missing is not defined" in line for line in console)
    assert desktop["needed"] > desktop["inside"]
    assert desktop["broken"] == 1


class TestAbundance:
    def test_conditions_have_a_section(self, trained_small, tmp_path):
        trained_small.obs["donor"] = pd.Categorical([f"d{i % 6}" for i in range(90)])
        trained_small.obs["condition"] = np.where(np.arange(90) % 6 < 3, "case", "control")
        path = tmp_path / "report.html"
        arguments = {"labels_key": "cell_type", "condition_key": "condition", "sample_key": "donor"}
        scvip.pl.report(trained_small, path=path, **arguments)
        page = path.read_text()
        assert '<h2 id="abundance">' in page
        assert "(control over case)" in page
        scvip.pl.report(trained_small, path=path)
        assert '<h2 id="abundance">' not in path.read_text()

    def test_conditions_without_samples_are_refused(self, trained_small, tmp_path):
        with pytest.raises(ValueError, match=r"condition_key='batch' and sample_key=None go together"):
            scvip.pl.report(trained_small, path=tmp_path / "report.html", condition_key="batch")
        assert not list(tmp_path.glob("*.html"))
