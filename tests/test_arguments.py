"""Arguments that two functions share are listed once, and seen at both."""

import inspect

import pytest

import scanpy_scvipyro as scvip
from scanpy_scvipyro import _arguments, data, training
from scanpy_scvipyro._public import public
from scanpy_scvipyro.model import SCVI


def first(adata, *, n_latent=10, n_hidden=128, dispersion="gene", key_added="first"):
    """Fit the first.

    Parameters
    ----------
    adata
        What is shared.
    n_latent, n_hidden
        Sizes.

        In two paragraphs.
    dispersion
        Left out of the second.
    key_added
        Name of the first.

    Returns
    -------
    All arguments.
    """


@public
@_arguments.shared_with(first, without=["dispersion", "n_latent"])
def second(adata, arguments, *, labels_key, key_added="second"):
    """Fit the second.

    Parameters
    ----------
    adata
        What is shared.
    labels_key
        Column.
    key_added
        Name of the second.

    Returns
    -------
    All arguments.
    """
    return adata, labels_key, key_added, arguments


class TestSharedWith:
    def test_the_signature_names_own_then_shared_arguments(self):
        assert str(inspect.signature(second)) == "(adata, *, labels_key, key_added='second', n_hidden=128)"

    def test_help_documents_own_then_shared_arguments(self):
        expected = """Fit the second.

Parameters
----------
adata
    What is shared.
labels_key
    Column.
key_added
    Name of the second.
n_hidden
    Sizes.

    In two paragraphs.

Returns
-------
All arguments."""
        assert second.__doc__ == expected

    def test_the_function_gets_all_arguments_by_name_with_defaults(self):
        everything = {"labels_key": "type", "key_added": "second", "n_hidden": 3}
        assert second("adata", labels_key="type", n_hidden=3) == ("adata", "type", "second", everything)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"n_hiden": 3, "labels_key": "type"}, r"second\(\) has no argument 'n_hiden'. Did you mean 'n_hidden'\?"),
            ({"dispersion": "gene", "labels_key": "type"}, "no argument 'dispersion'"),
            ({"arguments": {}, "labels_key": "type"}, "no argument 'arguments'"),
            ({}, "missing a required .*'labels_key'"),
        ],
    )
    def test_other_arguments_are_refused(self, arguments, message):
        with pytest.raises(TypeError, match=message):
            second("adata", **arguments)

    def test_all_but_adata_must_be_named(self):
        with pytest.raises(TypeError, match="positional"):
            second("adata", {}, labels_key="type")

    def test_the_arguments_of_scvi_pyro_are_documented_at_a_second_function(self):
        @_arguments.shared_with(scvip.tl.scvi_pyro, without=["labels_key"])
        def other(adata, arguments, *, own=1):
            """Do.

            Parameters
            ----------
            own
                Its own.

            Returns
            -------
            Nothing.
            """

        shared = set(inspect.signature(scvip.tl.scvi_pyro).parameters) - {"labels_key"}
        assert set(inspect.signature(other).parameters) == shared | {"own"}
        headings = {name for line in other.__doc__.splitlines() if line[:1].islower() for name in line.split(", ")}
        assert shared - {"adata"} | {"own"} <= headings
        assert "labels_key" not in headings


def test_every_argument_of_scvi_pyro_reaches_what_declares_it():
    arguments = dict.fromkeys(inspect.signature(scvip.tl.scvi_pyro).parameters)
    parts = [_arguments.taken_by(part, arguments) for part in (data.DataSpec, SCVI, training.Recipe, training.fit)]
    taken = [name for part in parts for name in part]
    assert len(set(taken)) == len(taken)
    used_by_the_call_itself = {"adata", "mask_var", "batch_offset", "module", "impute", "key_added", "copy"}
    assert set(arguments) - set(taken) == used_by_the_call_itself


def test_defaults_of_the_model_are_those_of_scvi_pyro_or_as_published():
    ours, theirs = inspect.signature(SCVI).parameters, inspect.signature(scvip.tl.scvi_pyro).parameters
    shared = set(ours) & set(theirs)
    differ = {name: ours[name].default for name in shared if ours[name].default != theirs[name].default}
    published = {"encoder_input": "log_counts", "batch_representation": "one-hot", "prior": "normal"}
    assert differ == published | {"batch_alignment": 0.0}
