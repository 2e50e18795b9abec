"""Shapes and equations of the generative model; that it is a Pyro program is tested in test_pyro.py."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from scipy import stats
from torch.distributions import Normal, kl_divergence

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, integration, posterior
from scanpy_scvipyro.model import SCVI


@pytest.fixture
def cell_data(small):
    small.obs["donor"] = np.resize(["x", "y"], small.n_obs)
    small.obs["age"] = np.linspace(-1, 1, small.n_obs)
    spec = data.DataSpec(
        batch_key="batch",
        labels_key="cell_type",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    genes = np.ones(small.n_vars, dtype=bool)
    return data.load(small, data.describe(small, spec, genes), genes)


@pytest.fixture
def cells(cell_data):
    return cell_data.cells(torch.arange(12) * 7)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def untrained(**options):
    options = {"n_labels": 3, "n_categories": (2,), "n_continuous": 1} | options
    return SCVI(40, 3, **options).eval()


def test_elbo_terms_are_those_of_the_equations(cells):
    module = untrained()
    seed = torch.get_rng_state()
    reconstruction, kl = posterior.elbo_terms(module, cells)

    torch.set_rng_state(seed)
    log_counts = cells.counts.to_dense().log1p()
    loc, scale = module.encoder(log_counts, log_counts[:, :0])
    z = Normal(loc, scale).rsample()
    mean = cells.library_size * module.decode(z, cells)[0].exp()
    theta = module.log_inverse_dispersion.exp()
    expected = torch.distributions.NegativeBinomial(theta.double(), logits=(mean / theta).log().double())
    torch.testing.assert_close(
        reconstruction.double(), expected.log_prob(cells.counts.to_dense().double()).sum(dim=1), rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(kl, kl_divergence(Normal(loc, scale), Normal(0, 1)).sum(dim=1))


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
def test_sparse_and_dense_counts_have_the_same_elbo(cells, gene_likelihood):
    module = untrained(gene_likelihood=gene_likelihood)
    seed = torch.get_rng_state()
    from_sparse = posterior.elbo_terms(module, cells)
    torch.set_rng_state(seed)
    from_dense = posterior.elbo_terms(module, cells._replace(counts=cells.counts.to_dense()))
    torch.testing.assert_close(from_sparse, from_dense, rtol=1e-6, atol=1e-4)


def test_frequencies_sum_to_one(cells):
    log_rho = untrained().decode(torch.randn(12, 10), cells)[0]
    torch.testing.assert_close(log_rho.exp().sum(dim=1), torch.ones(12))


def test_frequencies_relative_to_size_factors_need_not_sum_to_one(cells):
    log_rho = untrained(has_size_factor=True).decode(torch.randn(12, 10), cells)[0]
    assert (log_rho.exp().sum(dim=1) - 1).abs().min() > 0.01


@pytest.mark.parametrize(
    ("dispersion", "codes"), [("gene-batch", "batch"), ("gene-label", "label"), ("gene", None), ("gene-cell", None)]
)
def test_dispersion_is_that_of_gene_batch_label_or_cell(cells, dispersion, codes):
    module = untrained(dispersion=dispersion)
    if dispersion != "gene-cell":
        module.log_inverse_dispersion.data.normal_()
    z = torch.randn(12, 10)
    log_theta = module.likelihood(z, cells.library_size, cells).log_inverse_dispersion
    if dispersion == "gene-cell":
        expected = module.decode(z, cells)[2]
        assert expected.std(dim=0).min() > 0
    else:
        expected = module.log_inverse_dispersion
        expected = expected if codes is None else expected[getattr(cells, codes)]
    torch.testing.assert_close(log_theta, expected, rtol=0, atol=0)


def test_covariates_are_the_design_matrix(cells):
    one_hots = [F.one_hot(cells.batch, 3), F.one_hot(cells.categorical[:, 0], 2)]
    expected = torch.cat([cells.continuous, *one_hots], dim=1)
    torch.testing.assert_close(untrained().covariates(cells), expected)


def test_an_embedding_takes_the_place_of_the_one_hot_batch(cells):
    module = untrained(batch_representation="embedding", n_batch_embedding=4)
    design = module.covariates(cells)
    assert design.shape == (12, 1 + 4 + 2)
    torch.testing.assert_close(design[:, 1:5], module.batch_embedding.weight[cells.batch])


def test_beside_leading_offsets_the_one_hot_batch_is_small(cells):
    expected = untrained().covariates(cells)
    expected[:, 1:4] *= 0.3
    torch.testing.assert_close(untrained(batch_representation="offset").covariates(cells), expected)


@pytest.mark.parametrize("encoder_input", ["log_normalized", "log_counts"])
def test_codes_do_not_depend_on_leading_offsets(cells, encoder_input):
    module = untrained(batch_representation="offset", encoder_input=encoder_input)
    torch.nn.init.normal_(module.offset)
    counts = cells.counts.to_dense() + 1
    biased = [counts * module.offset[code].detach().exp() for code in (0, 1)]
    first, second = (module.encoded(biased[code], torch.full((12,), code)) for code in (0, 1))
    torch.testing.assert_close(first, second)
    assert not first.requires_grad  # or codes that say more of the batch would be a way to a better fit
    assert not torch.allclose(module.encoded(biased[0], cells.batch * 0 + 1), first)


def test_leading_offsets_have_a_normal_prior(cells):
    module = untrained(batch_representation="offset")
    torch.nn.init.normal_(module.offset)
    module.n_cells = 500
    assert "offset_prior" not in poutine.trace(module.model).get_trace(cells)
    trace = poutine.trace(module.train().model).get_trace(cells, kl_weight=0.3)
    site = trace.nodes["offset_prior"]
    density = stats.norm(0, 0.5).logpdf(module.offset.detach().double().numpy()).sum()
    expected = torch.full((12,), density / 500)  # over all minibatches of an epoch, once
    torch.testing.assert_close((site["scale"] * site["fn"].log_prob(site["value"])).detach(), expected.float())
    assert "offset_prior" not in poutine.trace(untrained().train().model).get_trace(cells)


def test_one_batch_adds_no_column(cells):
    module = SCVI(40)
    plain = cells._replace(
        batch=torch.zeros_like(cells.batch), categorical=cells.categorical[:, :0], continuous=cells.continuous[:, :0]
    )
    assert module.covariates(plain).shape == (12, 0)


@pytest.mark.parametrize("encode_covariates", [True, False])
def test_the_encoder_sees_covariates_only_if_asked(cells, encode_covariates):
    module = untrained(encode_covariates=encode_covariates)
    other = cells._replace(batch=(cells.batch + 1) % 3, continuous=cells.continuous + 1)
    codes = [posterior.latent_posterior(module, c).mean for c in (cells, other)]
    assert torch.equal(*codes) != encode_covariates


def test_the_decoder_sees_batch_and_covariates(cells):
    module, z = untrained(has_batch_offset=False), torch.randn(12, 10)
    decoded = module.decode(z, cells)[0]
    for changed in (
        {"batch": (cells.batch + 1) % 3},
        {"continuous": cells.continuous + 1},
        {"categorical": 1 - cells.categorical},
    ):
        assert not torch.allclose(module.decode(z, cells._replace(**changed))[0], decoded)


def test_covariates_are_injected_into_every_layer_or_the_first_alone():
    widths = {
        deep: [
            layer[0].in_features for layer in untrained(n_layers=3, deeply_inject_covariates=deep).decoder.hidden.layers
        ]
        for deep in (True, False)
    }
    assert widths == {True: [10 + 6, 128 + 6, 128 + 6], False: [10 + 6, 128, 128]}


def test_a_linear_decoder_is_linear(cells):
    module = untrained(decoder="linear")
    a, b = torch.randn(2, 12, 10)

    def logits(z):
        return module.decoder.rate(torch.cat([z, module.covariates(cells)], dim=1)) + module.offset[cells.batch]

    torch.testing.assert_close(module.decode(a, cells)[0], logits(a).log_softmax(dim=1))
    torch.testing.assert_close(logits(a) + logits(b), logits(a + b) + logits(0 * a), rtol=1e-4, atol=1e-4)


def test_training_starts_at_the_frequencies_of_the_genes(cell_data, cells):
    module = untrained()
    start = cell_data.log_frequencies(), cell_data.log_library_size()
    module.start_from(*start[0], start[1], batch_offset=1.0)
    # The latent code is without weight where the decoder's features are zero.
    module.decoder.rate.weight.data[:] = 0
    decoded = module.decode(torch.randn(12, 10), cells)[0]
    torch.testing.assert_close(decoded, start[0][1][cells.batch], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_batch_offsets_start_at_a_share_of_the_deviation(cell_data, share):
    module = untrained()
    overall, per_batch = cell_data.log_frequencies()
    module.start_from(overall, per_batch, cell_data.log_library_size(), batch_offset=share)
    torch.testing.assert_close(module.offset, share * (per_batch - overall))


def test_a_latent_library_starts_at_that_of_the_batch(cell_data, cells):
    module = untrained(library="latent")
    module.start_from(*cell_data.log_frequencies(), cell_data.log_library_size(), batch_offset=0.5)
    prior = module.library_prior(cells.batch)
    loc, scale = cell_data.log_library_size()
    torch.testing.assert_close(prior.base_dist.loc, loc[cells.batch])
    torch.testing.assert_close(prior.base_dist.scale, scale[cells.batch])


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
def test_without_counts_the_model_draws_counts(cells, gene_likelihood):
    counts = untrained(gene_likelihood=gene_likelihood).model(cells._replace(counts=None))
    assert counts.shape == (12, 40)
    assert torch.equal(counts, counts.round())
    assert (counts >= 0).all()


def test_evaluation_is_without_dropout(cells):
    module = untrained(dropout_rate=0.5)
    codes = [posterior.latent_posterior(module, cells).mean for _ in range(2)]
    assert torch.equal(*codes)
    module.train()
    codes = [posterior.latent_posterior(module, cells).mean for _ in range(2)]
    assert not torch.equal(*codes)


def test_the_decoder_has_no_dropout(cells):
    module, z = untrained(dropout_rate=0.5).train(), torch.randn(12, 10)
    assert torch.equal(module.decode(z, cells)[0], module.decode(z, cells)[0])


@pytest.mark.parametrize(
    ("normalization", "layer"), [("batch", torch.nn.BatchNorm1d), ("layer", torch.nn.LayerNorm), ("none", None)]
)
def test_normalization_is_that_of_each_network(normalization, layer):
    module = untrained(encoder_normalization=normalization, decoder_normalization="none")
    found = [m for m in module.encoder.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.LayerNorm)]
    assert [type(m) for m in found] == ([layer] if layer else [])
    assert not [m for m in module.decoder.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.LayerNorm)]


def test_latent_codes_hardly_matter_before_training(cell_data):
    z, cells = torch.randn(12, 10), cell_data.cells(torch.zeros(12, dtype=torch.int64))
    module = untrained().eval()

    def spread():
        return module.decode(z, cells)[0].std(dim=0).mean().item()

    before = spread()
    module.start_from(*cell_data.log_frequencies(), cell_data.log_library_size(), batch_offset=0.5)
    assert spread() < before / 5


def test_running_statistics_of_batch_normalization_follow_a_tenth_of_the_way():
    normalization = next(m for m in untrained().modules() if isinstance(m, torch.nn.BatchNorm1d))
    normalization.train()(torch.full((10, 128), 5.0))
    torch.testing.assert_close(normalization.running_mean, torch.full((128,), 0.5))


def test_a_latent_library_size_scales_the_expected_counts(cells):
    module = untrained(library="latent").eval()
    drawn = {"z": torch.zeros(12, 10), "library_size": torch.linspace(10, 5000, 12)[:, None]}
    trace = poutine.trace(poutine.condition(module.model, data=drawn)).get_trace(cells)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean.sum(-1, keepdim=True), drawn["library_size"])


def test_codes_do_not_depend_on_the_depth_of_a_cell(cell_data, cells):
    module = untrained(encoder_input="log_normalized")
    module.start_from(*cell_data.log_frequencies(), cell_data.log_library_size(), batch_offset=0.0)
    deeper = cells._replace(counts=cells.counts * 3)
    codes = [posterior.latent_posterior(module, each).mean for each in (cells, deeper)]
    torch.testing.assert_close(*codes)


def test_the_encoder_scales_cells_to_their_geometric_mean_depth(cell_data):
    module = untrained(encoder_input="log_normalized")
    module.start_from(*cell_data.log_frequencies(), cell_data.log_library_size(), batch_offset=0.0)
    depth, batch = cell_data.depth[:, 0].numpy(), cell_data.batch.numpy()
    means = [np.log(depth[batch == code]).mean() for code in range(3)]  # each batch counts the same
    assert module.typical_depth.item() == pytest.approx(np.exp(np.mean(means)), rel=1e-5)


class TestAlignment:
    def module(self, **options):
        return untrained(prior="mixture", n_prior_components=4, **options)

    def test_is_the_trusted_distance_of_batch_means_within_components(self):
        module, z, batch = self.module(), torch.randn(60, 10, dtype=torch.float64), torch.arange(60) % 3
        prior = module.double().prior()
        first = module.misalignment(prior, z, batch)
        found = module.misalignment(prior, z, batch)
        torch.testing.assert_close(found, first)  # the same cells once more are as far apart as they were

        weights = module.prior_logits.softmax(0).tolist()
        components = [Normal(m, s.exp()) for m, s in zip(module.prior_loc, module.prior_log_scale, strict=True)]
        density = torch.stack([w * c.log_prob(z).sum(1).exp() for w, c in zip(weights, components, strict=True)], dim=1)
        share = density / density.sum(dim=1, keepdim=True)
        expected, n_cells = 0.0, torch.stack([share[batch == code].sum(dim=0) for code in range(3)])
        for code in range(3):
            distance = []
            for k, component in enumerate(components):
                mean = (share[:, [k]] * z).sum(0) / share[:, k].sum()
                own = (share[batch == code][:, [k]] * z[batch == code]).sum(0) / n_cells[code, k]
                distance.append(((own - mean) / component.stddev).square().mean())
            usual = np.average([d.sqrt().item() for d in distance], weights=n_cells[code].detach()) ** 2
            for d, n in zip(distance, n_cells[code], strict=True):
                expected += n * d / (1 + d / (3 * usual)) ** 2 * (n > 2)
        assert found.sum().item() == pytest.approx(expected.item(), rel=1e-4)

    def test_trusts_a_distance_that_a_single_type_has_little(self):
        pulls = []
        for is_alone in (True, False):
            torch.manual_seed(0)
            module, batch = self.module(), torch.arange(400) % 2
            component = torch.arange(400) // 2 % 4
            with torch.no_grad():
                module.prior_loc.copy_(50 * torch.eye(4, 10))
            is_apart = (batch == 1) & ((component == 0) if is_alone else torch.ones(400, dtype=torch.bool))
            z = (module.prior_loc[component] + 0.1 * torch.randn(400, 10) + is_apart[:, None]).detach().requires_grad_()
            module.misalignment(module.prior(), z, batch).sum().backward()
            pulls.append(z.grad[(batch == 1) & (component == 0)].mean().item())
        assert 0 < 3 * pulls[0] < pulls[1]

    def test_trusts_by_more_than_one_minibatch(self):
        module, batch = self.module(), torch.arange(60) % 2
        with torch.no_grad():
            module.prior_loc[1:] += 50
        z = 0.1 * torch.randn(60, 10) + batch[:, None]
        sums = []
        for _ in range(3):
            module.misalignment(module.prior(), z, batch)
            sums.append(module.code_sums)
        assert "code_sums" not in module.state_dict()
        torch.testing.assert_close(sums[0][..., -1].sum(), torch.tensor(60.0))
        torch.testing.assert_close(sums[2], (1 + 0.98 + 0.98**2) * sums[0])

    def test_leaves_batches_of_different_components_apart(self):
        module, batch = self.module(), torch.arange(60) % 2
        with torch.no_grad():
            module.prior_loc[:2] = torch.tensor([[-50.0], [50.0]])
        z = (module.prior_loc[:2][batch] + torch.randn(60, 10)).detach().requires_grad_()
        module.misalignment(module.prior(), z, batch).sum().backward()
        assert z.grad.abs().max() < 1e-4

    def test_pulls_batches_of_a_component_together(self):
        module, batch = self.module(), torch.arange(60) % 2
        z = (torch.randn(60, 10) + batch[:, None]).requires_grad_()
        before = module.misalignment(module.prior(), z, batch).sum()
        before.backward()
        after = module.misalignment(module.prior(), z - 0.1 * z.grad, batch).sum()
        assert after < before

    def test_is_the_distance_to_the_component_where_that_is_frozen(self):
        module, z, batch = self.module(), torch.randn(60, 10), torch.zeros(60, dtype=torch.long)
        assert module.misalignment(module.prior(), z, batch).abs().max() < 1e-6  # the only batch is all of them
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            module.prior_loc[1:] += 50  # all cells are of the first component
        module.code_sums = None
        distance = (z.mean(dim=0) - module.prior_loc[0]) / module.prior_log_scale[0].exp()
        expected = distance.square().mean().expand(60) * (3 / 4) ** 2  # of all that there is, it is what is usual
        torch.testing.assert_close(module.misalignment(module.prior(), z, batch), expected, rtol=1e-4, atol=0)

    def test_is_a_site_in_training_alone(self, cells):
        module = self.module(batch_alignment=2.0)
        assert "alignment" not in poutine.trace(module.model).get_trace(cells)
        trace = poutine.trace(module.train().model).get_trace(cells, kl_weight=0.5)
        site, z = trace.nodes["alignment"], trace.nodes["z"]["value"]
        module.code_sums = None
        expected = -0.5 * 2.0 * module.misalignment(module.prior(), z, cells.batch)
        torch.testing.assert_close(site["scale"] * site["fn"].log_prob(site["value"]), expected)

    def test_waits_for_the_full_kl_weight(self, cells):
        module = untrained(prior="mixture", batch_alignment=2.0).train()
        for module.warmup, is_there in ((0.99, False), (1.0, True)):
            assert ("alignment" in poutine.trace(module.model).get_trace(cells)) == is_there

    @pytest.mark.parametrize("options", [{"batch_alignment": 0.0}, {"prior": "normal", "batch_alignment": 2.0}])
    def test_needs_a_weight_and_a_mixture(self, cells, options):
        module = untrained(**({"prior": "mixture"} | options)).train()
        assert "alignment" not in poutine.trace(module.model).get_trace(cells)

    def test_mixes_batches_of_real_cells(self, mixtures):
        shares = []
        for weight in (0, 200):
            options = {"max_epochs": 20, "batch_alignment": weight, "impute": False, "progress_bar": False}
            adata = scvip.tl.scvi_pyro(mixtures, batch_key="batch", copy=True, **options)
            near = integration.neighbors(adata.obsm["X_scvi_pyro"])
            shares.append(integration.same_share(near, mixtures.obs["batch"].cat.codes.to_numpy()).mean())
        assert shares[1] < shares[0] - 0.02
