"""Links of pages to what lies outside docs/ lead to copies of it within the site."""

import pytest

from tools.docs.repository import carried_files, relink


@pytest.mark.parametrize(
    ("page", "link", "in_site"),
    [
        ("counting.md", "whitening.md#floor", "whitening.md#floor"),
        ("concepts/counting.md", "../how-to/coco.md", "../how-to/coco.md"),
        ("counting.md", "../benchmarks/README.md#cpu", "repository/benchmarks/README.md#cpu"),
        ("concepts/counting.md", "../../LICENSE", "../repository/LICENSE"),
        ("repository/benchmarks/README.md", "../docs/whitening.md", "../../whitening.md"),
        ("repository/benchmarks/README.md", "gpu_kernels.md", "gpu_kernels.md"),
        ("repository/CHANGELOG.md", "docs/a.md", "../a.md"),
        ("index.md", "notebooks/whitening.ipynb", "notebooks/whitening.md"),
        ("index.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("index.md", "mailto:a@example.org", "mailto:a@example.org"),
        ("index.md", "#here", "#here"),
    ],
)
def test_a_link_leads_to_the_same_file_in_the_site(page, link, in_site):
    for before, after in ["[t](", ")"], ["![t](", ' "title")'], ["[t]: ", ""]:
        assert relink(before + link + after, page) == before + in_site + after


def test_what_carried_files_link_to_is_carried_too(tmp_path):
    for path, text in {
        "docs/a.md": "[b](../x/b.md) [gone](../gone.md)",
        "x/b.md": "[c](c.toml) [a](../docs/a.md) [up](../../up.md)",
        "x/c.toml": "[d](d.md)",
        "x/d.md": "",
        "CHANGES.md": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = carried_files(["a.md", "repository/CHANGES.md"], tmp_path)
    assert found == ["CHANGES.md", "x/b.md", "x/c.toml"]
