"""Parts of the summary of a run, for programs that look after many."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

_PACKAGES = ("scanpy-scvipyro", "anndata", "scanpy", "numpy", "torch", "pyro-ppl", "pytorch-lightning")


def of_machine(n_threads: int) -> dict[str, Any]:
    """Return what it ran on, and the most memory that it took so far."""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "machine": {"platform": platform.platform(), "threads": n_threads},
        "peak_memory_bytes": _peak_memory(),
    }


def of_model(adata: AnnData, key: str) -> tuple[dict[str, int], dict[str, float]]:
    """Return sizes and ELBO of a trained model; nothing where there is none."""
    from scanpy_scvipyro import _stored

    if key not in _stored.names(adata):
        return {}, {}
    stored = _stored.trained(adata, key)
    batches = stored["categories"].get(stored["params"].get("batch_key"), ())
    history = stored["history"]
    elbo = {
        part: float(history[f"{part}_elbo"].dropna().iloc[-1])
        for part in ("train", "validation")
        if f"{part}_elbo" in history and history[f"{part}_elbo"].notna().any()
    }
    sizes = {"n_genes_modelled": len(stored["genes"]), "n_batches": max(1, len(batches)), "n_epochs": len(history)}
    return sizes, elbo


def warnings_of_training(adata: AnnData, key: str) -> list[str]:
    """Return what a report would warn of, if it sees no more than the model; training itself has said the rest."""
    from scanpy_scvipyro import _stored, absent
    from scanpy_scvipyro.pl import _report_content

    stored = _stored.trained(adata, key)
    findings = [*absent.lacking(stored), *_report_content.training_findings(stored, adata.n_obs)]
    return [f"{title}. {found} {advice}" for title, found, advice in findings]


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
