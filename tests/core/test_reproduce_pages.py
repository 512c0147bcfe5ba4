"""Tables, figures and pages: what is on them is what was found."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from PIL import Image
from reproduced import PROFILE, evidence, runs, write_compact

from t2v_core.config import Model2VecSpec, SelectionSpec
from t2v_core.distances import cosine_matrix
from t2v_core.errors import ConfigError, DataError, UnknownNameError
from t2v_core.matrix import expert_taxonomy
from t2v_core.metatasks import make_meta_tasks
from t2v_core.reproduce.claims import norm_follows_difficulty, taxonomy_agrees
from t2v_core.reproduce.compact import from_triangle, read_compact, unit_vectors
from t2v_core.reproduce.figures.canvas import png, printable
from t2v_core.reproduce.figures.distances import draw_distances, top_of
from t2v_core.reproduce.figures.maps import draw_maps
from t2v_core.reproduce.figures.sizes import draw_sizes
from t2v_core.reproduce.figures.violins import columns_of, draw_violins
from t2v_core.reproduce.judging import judge_meta_tasks, judge_probes
from t2v_core.reproduce.page import pages
from t2v_core.reproduce.paper import TABLE_1, TABLE_2
from t2v_core.reproduce.profile import PROFILES, load_profile
from t2v_core.reproduce.run import Reproduction, reproduce
from t2v_core.reproduce.scores import expert_scores
from t2v_core.reproduce.tables import Shown, with_paper

SPEC = SelectionSpec(n_bootstrap=100)
QUICK = Model2VecSpec(l2=(1.0,))
CURVE = ({10: 0.3, 100: 0.2}, {10: 0.4, 100: 0.3}, {10: 0.2, 100: 0.1})
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def found() -> Reproduction:
    made = evidence(transfer=runs(*CURVE))
    return reproduce(replace(made, probes={"p1": made.embeddings}), SPEC, QUICK, probe="p0")


def test_profiles_are_whole_and_say_what_differs() -> None:
    assert set(PROFILES) == {"paper", "rehearsal"}
    for name in PROFILES:
        profile = load_profile(name)
        assert len(profile.meta_tasks) == 2
        assert profile.differs
        assert profile.meta_tasks[0].n_tasks == profile.meta_tasks[0].n_experts == 50
        assert (profile.meta_tasks[1].n_tasks, profile.meta_tasks[1].n_experts) == (50, 26)
    with pytest.raises(UnknownNameError, match="did you mean 'rehearsal'"):
        load_profile("rehersal")


def test_a_profile_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: x\ntitle: y\nviolin: [a]\n")
    with pytest.raises(ConfigError, match="did you mean 'violins'"):
        load_profile(str(tmp_path / "p.yaml"))
    with pytest.raises(ConfigError, match="cannot read a profile"):
        load_profile(str(tmp_path / "absent.yaml"))


def test_evidence_says_which_shape_does_not_fit() -> None:
    made = evidence()
    with pytest.raises(DataError, match=r"errors has shape \(68, 2\), wanted \(68, 15\)"):
        replace(made, errors=made.errors[:, :2])
    with pytest.raises(DataError, match="lack columns head_error"):
        replace(made, tasks=made.tasks.drop(columns="head_error"))


def test_twins_are_one_group_and_own_tasks_are_known() -> None:
    made = evidence()
    half = len(made.tasks) // 2
    assert (made.groups[:half] == made.groups[half:]).all()
    assert len(set(made.groups)) == half
    for column, on in enumerate(made.trained_on.values()):
        assert made.own[:, column].sum() == len(on)


def test_table_1_has_the_papers_figures_where_the_paper_has_them(found: Reproduction) -> None:
    table = found.table_1.set_index(["meta_task", "reading", "method"])["paper"]
    assert table["both", "own expert left out", "MODEL2VEC"] == 0.0681
    assert table["mixed", "own expert left out", "chance"] == 1.1249
    assert np.isnan(table["both", "all candidates", "MODEL2VEC"])
    assert np.isnan(table["both", "own expert left out", "static"])
    assert set(TABLE_1) == {"iNat + CUB", "Mixed"}
    # A third meta-task stands for none of the paper's.
    third = pd.DataFrame([{"meta_task": "z", "reading": "own expert left out", "method": "chance"}])
    assert np.isnan(with_paper(third, ["x", "y", "z"])["paper"][0])


def test_a_meta_task_is_a_sample_of_the_tried_tasks_and_has_three_readings() -> None:
    made = evidence()
    rule = PROFILE.meta_tasks[0]
    first = judge_meta_tasks(made, SPEC, QUICK, names=["oracle", "generic", "taxonomic distance"])
    before = set(first.choices.loc[first.choices["meta_task"] == rule.name, "task_id"])
    assert len(before) == 12
    assert set(first.table["reading"]) == {"own expert left out", "all candidates", "own domain left out"}
    row = made.task_ids.index(min(before))
    made.errors[row] = np.nan  # was not tried by any expert: another task takes its place
    after = set(judge_meta_tasks(made, SPEC, QUICK, names=["oracle"]).choices.query("meta_task == 'both'")["task_id"])
    assert len(after) == 12
    assert before - after == {made.task_ids[row]}


def test_an_experts_taxonomic_distance_is_that_of_its_nearest_task() -> None:
    made = evidence()
    found = expert_taxonomy(made.task_ids, made.class_lineages, made.trained_on)
    assert found is not None
    tax = dict(zip(np.flatnonzero(made.taxonomic), range(32), strict=True))
    for column, on in enumerate(made.trained_on.values()):
        rows = [made.task_ids.index(t) for t in on]
        for i in range(len(made.tasks)):
            known = [made.taxonomy_distances[tax[i], tax[r]] for r in rows if r in tax] if i in tax else []
            assert found[i, column] == min(known) if known else np.isnan(found[i, column])
    flat = [tuple(place[-1:] for place in places) for places in made.class_lineages]
    for none in ([() for _ in made.class_lineages], flat):  # names of classes alone are no taxonomy
        assert expert_taxonomy(made.task_ids, none, made.trained_on) is None


def test_selectors_order_by_what_the_embedding_knows(found: Reproduction) -> None:
    both = found.table_1[(found.table_1["meta_task"] == "both") & (found.table_1["reading"] == "own expert left out")]
    increase = both.set_index("method")["relative_increase"]
    assert increase["oracle"] == 0
    # Errors were made of the distances of these very embeddings.
    assert increase["TASK2VEC"] < increase["chance"]
    assert increase["TASK2VEC"] < 0.05


def test_table_2_is_the_same_for_the_same_embeddings(found: Reproduction) -> None:
    wide = found.table_2.pivot(index=["tasks", "method"], columns="probe", values="relative_increase")
    assert wide["p0"].to_numpy() == pytest.approx(wide["p1"].to_numpy())
    assert set(found.table_2["n_tasks"]) == {12, 10}
    assert TABLE_2["10 largest"]["ResNet-13"] == 0.0
    # The ten largest are those with most train images; chance there is the mean over them.
    own = found.choices[(found.choices["meta_task"] == "both") & (found.choices["reading"] == "own expert left out")]
    own = own[own["method"] == "chance"].set_index("task_id")
    size = found.evidence.tasks.set_index("task_id")["n_train"].loc[own.index]
    expected = own["ratio"][size.nlargest(10).index].mean()
    assert wide["p0"]["10 largest", "chance"] == pytest.approx(expected)


def test_a_probe_that_lacks_a_task_is_refused() -> None:
    made = evidence()
    table = made.embeddings
    judged = judge_meta_tasks(made, SPEC, QUICK, names=["oracle"]).choices.query("meta_task == 'both'")["task_id"]
    keep = np.array([i for i, t in enumerate(table.task_ids) if t != min(judged)])
    ids = tuple(table.task_ids[i] for i in keep)
    part = replace(table, task_ids=ids, vectors=table.vectors[keep], domains=table.domains[keep])
    with pytest.raises(DataError, match="1 tasks of 'both' were not embedded by this probe"):
        judge_probes(replace(made, probes={"p1": part}), "p0", SPEC, QUICK)


def test_expert_scores_are_zero_on_an_experts_own_task_and_unknown_for_the_generic_one() -> None:
    made = evidence()
    symmetric, asymmetric = expert_scores(made.embeddings, made.trained_on, 0.15)
    assert np.isnan(symmetric[:, 0]).all()
    assert symmetric[made.own] == pytest.approx(0.0, abs=1e-9)
    gap = symmetric[:, 1:] - asymmetric[:, 1:]
    assert (gap > 0).all()
    assert np.ptp(gap, axis=0) == pytest.approx(0.0, abs=1e-12)  # alpha times a complexity of the expert alone


def test_the_maps_have_every_task_once() -> None:
    made = evidence()
    best, _ = norm_follows_difficulty(made, SPEC)
    drawn = draw_maps(made, best, [best])
    left, middle, _ = drawn.figure.axes
    for axes in (left, middle):
        points = [p for p in axes.collections if isinstance(p, PathCollection)]
        assert sum(len(p.get_offsets()) for p in points) == len(made.tasks)
        assert len({tuple(p.get_facecolor()[0]) for p in points}) == len(points)
    assert png(drawn.figure) == png(drawn.figure)


def test_figure_2_orders_the_matrix_by_the_tree_and_shows_the_curves() -> None:
    made = evidence()
    agreement = taxonomy_agrees(made, SPEC)
    drawn = draw_distances(made, agreement, norm_follows_difficulty(made, SPEC)[1])
    assert drawn is not None
    shown = next(
        a.images[0].get_array() for a in drawn.figure.axes if a.images and a.images[0].get_array().shape == (32, 32)
    )
    kept = made.taxonomic
    assert np.sort(np.asarray(shown).ravel()) == pytest.approx(np.sort(made.symmetric[np.ix_(kept, kept)].ravel()))
    # Neighbours in the order are nearer than pairs on the whole.
    assert np.diag(np.asarray(shown), 1).mean() < np.asarray(shown).mean()
    lines = {line.get_label(): line for a in drawn.figure.axes for line in a.lines}
    ours, ideal = lines["by TASK2VEC"].get_ydata(), lines["by the taxonomy (ideal)"].get_ydata()
    assert (np.asarray(ours) >= np.asarray(ideal) - 1e-9).all()
    assert f"{agreement.value:.2f}" in drawn.ours
    none = replace(made, class_lineages=tuple(() for _ in made.class_lineages))
    assert draw_distances(none, agreement, agreement) is None


def test_the_lineage_of_a_task_is_the_top_that_its_classes_share() -> None:
    assert top_of((("a", "b"), ("a", "c"))) == "a"
    assert top_of((("a", "b"), ())) == "a"
    assert top_of((("a", "b"), ("d", "c"))) == ""


def test_violins_mark_the_generic_and_the_selected_expert() -> None:
    made = evidence()
    scores = np.where(np.arange(15) == 4, -1.0, 0.0)[None].repeat(len(made.tasks), 0)
    drawn = draw_violins(made, scores, "always e15")
    assert drawn is not None
    rows = columns_of(made)
    norm = made.tasks["complexity"].to_numpy()[rows]
    assert (np.diff(norm) >= 0).all()
    axes = drawn.figure.axes[0]
    blue = [p.get_offsets()[0] for p in axes.collections if isinstance(p, PathCollection) and len(p.get_offsets()) == 1]
    heights = np.array([y for _, y in blue]).reshape(-1, 2)  # generic, selected for each column
    assert heights[:, 0] == pytest.approx(made.errors[rows, 0])
    expected = np.where(made.own[rows, 4], np.nan, made.errors[rows, 4])
    assert heights[~np.isnan(expected), 1] == pytest.approx(expected[~np.isnan(expected)])
    patterns = made.profile.model_copy(update={"violins": ["zzz*"]})
    with pytest.raises(ConfigError, match="no task matches zzz"):
        columns_of(replace(made, profile=patterns))


def test_figure_4_draws_the_errors_over_the_oracle() -> None:
    drawn = draw_sizes(runs(*CURVE), SPEC)
    assert drawn is not None
    lines = {line.get_label(): line for line in drawn.figure.axes[0].lines}
    assert list(lines["selected, frozen"].get_ydata()) == pytest.approx([50, 100])
    assert list(lines["generic, frozen"].get_ydata()) == pytest.approx([100, 200])
    assert list(lines["selected, frozen"].get_xdata()) == [10, 100]
    assert draw_sizes(None, SPEC) is None


def test_pages_hold_every_table_and_figure(found: Reproduction) -> None:
    written = pages(found, {"command": "t2v reproduce", "date": "today"})
    html, markdown = written["index.html"].decode(), written["README.md"].decode()
    for name in ("figure-1", "figure-2", "figure-3", "figure-4"):
        image = Image.open(io.BytesIO(written[f"{name}.png"]))
        assert min(image.size) > 300
        assert f'src="{name}.png"' in html
        assert f"({name}.png)" in markdown
    for claim in found.claims:
        assert claim.claim in markdown
        assert str(claim.verdict) in markdown
    claims = pd.read_parquet(io.BytesIO(written["claims.parquet"]))
    assert len(claims) == len(found.claims)
    table = pd.read_parquet(io.BytesIO(written["table-1.parquet"]))
    assert len(table) == len(found.table_1)
    assert "+6.8%" in html  # the paper's MODEL2VEC
    assert not found.missing
    assert all(re.search(r'alt="[^"]{20,}"', tag) for tag in re.findall(r"<img[^>]*>", html))


def test_markup_in_a_name_does_nothing(found: Reproduction) -> None:
    evil = "<script>alert(1)</script>|**"
    table = found.table_1.assign(note=evil)
    profile = found.evidence.profile.model_copy(update={"differs": evil, "title": evil})
    written = pages(replace(found, table_1=table, evidence=replace(found.evidence, profile=profile)), {"command": evil})
    for name in ("index.html", "README.md"):
        assert "<script>" not in written[name].decode()
    assert "default-src 'none'" in written["index.html"].decode()
    assert Shown("t", ["a|b"], [["c|d"]]).markdown() == "| a\\|b |\n| --- |\n| c\\|d |"
    assert printable("$x_{" + "y" * 50) == "…" + "y" * 33
    assert printable("a$b") == "a?b"


def test_distances_come_back_from_their_triangle_and_domains_from_their_distances() -> None:
    rng = np.random.default_rng(0)
    full = rng.random((7, 7))
    full = full + full.T
    np.fill_diagonal(full, 0)
    assert from_triangle(full[np.triu_indices(7, 1)], 7) == pytest.approx(full)
    with pytest.raises(DataError, match="got 5 distances for 7 tasks, wanted 21"):
        from_triangle(np.zeros(5), 7)
    vectors = rng.random((30, 12))
    d = cosine_matrix(vectors, vectors)
    back = unit_vectors(d, 12)
    assert cosine_matrix(back, back) == pytest.approx(d, abs=1e-5)
    assert np.linalg.norm(back, axis=1) == pytest.approx(1, abs=1e-5)


def test_compact_results_give_the_evidence_back(tmp_path: Path) -> None:
    made = evidence()
    write_compact(made, tmp_path / "x")
    back = read_compact(tmp_path / "x", PROFILE)
    assert back.task_ids == made.task_ids
    assert back.tasks["complexity"].tolist() == made.tasks["complexity"].tolist()
    assert back.symmetric == pytest.approx(made.symmetric)
    assert back.errors == pytest.approx(made.errors)
    assert back.embeddings.vectors == pytest.approx(made.embeddings.vectors, rel=1e-5)
    assert back.embeddings.trivial == pytest.approx(1e-6)
    assert [(x.name, x.start, x.stop) for x in back.embeddings.layers] == [("x", 0, 200), ("y", 200, 256)]
    assert back.trained_on == made.trained_on
    assert back.taxonomy_distances == pytest.approx(made.taxonomy_distances)
    assert (back.questions == made.questions).all()
    (tmp_path / "x" / "taxonomy.parquet").unlink()
    with pytest.raises(DataError, match=r"no taxonomy.parquet .* --store"):
        read_compact(tmp_path / "x", PROFILE)


def test_the_compact_results_that_come_along_can_be_read() -> None:
    profile = load_profile("rehearsal")
    read = read_compact(RESULTS / "rehearsal", profile, probes=RESULTS / "probes")
    assert read.errors.shape == (1553, 157)
    assert read.embeddings.vectors.shape == (1553, 1024)
    assert (read.embeddings.vectors > 0.9 * read.embeddings.trivial).all()  # F + t0 is never below t0
    assert set(read.probes) == {"efficientnet_lite1", "efficientnet_lite2"}
    assert read.taxonomic.sum() == 553
    meta = make_meta_tasks(profile.meta_tasks[:1], read.experts, read.task_ids, everything=False)[0]
    assert (len(meta.rows), len(meta.columns)) == (50, 51)
    assert np.isfinite(read.errors[np.ix_(meta.rows, meta.columns)]).all()
    needed = {read.task_ids[i] for i in meta.rows} | {t for e in meta.columns for t in read.trained_on[read.experts[e]]}
    for table in read.probes.values():
        assert needed <= set(table.task_ids)
