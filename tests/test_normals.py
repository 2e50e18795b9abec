"""Normals of a mixture against torch's own, one by one."""

import pyro.distributions as dist
import pytest
import torch

from scanpy_scvipyro.normals import Normals

N_COMPONENTS, N_DIMENSIONS = 7, 10


@pytest.fixture
def loc_and_scale():
    generator = torch.Generator().manual_seed(0)
    loc = 3 * torch.randn(N_COMPONENTS, N_DIMENSIONS, generator=generator, dtype=torch.float64)
    scale = torch.empty_like(loc).uniform_(0.05, 2, generator=generator)
    return loc, scale


@pytest.fixture
def points():
    return 5 * torch.randn(40, 1, N_DIMENSIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("n_points", [None, 40])
def test_density_is_that_of_independent_normals(loc_and_scale, points, n_points):
    normals = Normals(dist.Normal(*loc_and_scale), 1)
    if n_points:  # as in a plate
        normals = normals.expand([n_points, N_COMPONENTS])
        assert isinstance(normals, Normals)
    expected = dist.Normal(*loc_and_scale).to_event(1).log_prob(points)
    torch.testing.assert_close(normals.log_prob(points), expected)


def test_single_precision_loses_two_thousandths_of_a_nat_at_most_near_components_of_usual_width(loc_and_scale):
    loc, scale = loc_and_scale[0], loc_and_scale[1].clamp_min(0.3)
    near = loc[:, None] + 3 * scale[:, None]
    expected = dist.Normal(loc, scale).to_event(1).log_prob(near).diagonal()
    found = Normals(dist.Normal(loc.float(), scale.float()), 1).log_prob(near.float()).diagonal()
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=0)


def test_gradients_are_those_of_differences(loc_and_scale, points):
    inputs = [value.requires_grad_() for value in (*loc_and_scale, points[:3])]
    assert torch.autograd.gradcheck(lambda loc, scale, z: Normals(dist.Normal(loc, scale), 1).log_prob(z), inputs)


def test_points_of_other_shapes_are_served_as_by_independent_normals(loc_and_scale):
    value = torch.zeros(N_COMPONENTS, N_DIMENSIONS, dtype=torch.float64)
    expected = dist.Normal(*loc_and_scale).to_event(1).log_prob(value)
    torch.testing.assert_close(Normals(dist.Normal(*loc_and_scale), 1).log_prob(value), expected)


def test_components_with_parameters_of_their_own_for_each_point_are_not_mistaken_for_shared_ones(points):
    loc = torch.randn(40, N_COMPONENTS, N_DIMENSIONS, dtype=torch.float64)
    expected = dist.Normal(loc, 1.0).to_event(1).log_prob(points)
    torch.testing.assert_close(Normals(dist.Normal(loc, torch.ones_like(loc)), 1).log_prob(points), expected)


def test_mixture_in_a_plate_is_drawn_and_evaluated(loc_and_scale):
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(N_COMPONENTS)), Normals(dist.Normal(*loc_and_scale), 1)
    ).expand([1000])
    drawn = mixture.sample()
    assert drawn.shape == (1000, N_DIMENSIONS)
    plain = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(N_COMPONENTS)), dist.Normal(*loc_and_scale).to_event(1)
    )
    torch.testing.assert_close(mixture.log_prob(drawn), plain.log_prob(drawn))
