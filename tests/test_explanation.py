"trust/explanation and trust/planted: maps against masks, destroyed weights, shares on what was planted"
import numpy as np, pytest, torch
from torch import nn

from medlearn.foundations.attributions import explain,rank_agreement
from medlearn.foundations.training import small_cnn
from medlearn.kit.cards import DataError
from medlearn.trust.explanation import mass_inside,pointing_game,randomised,show_maps,top_inside
from medlearn.trust.planted import share_on

MASK = np.zeros((1, 4, 4), bool)
MASK[0, 1:3, 1:3] = True
MAP = np.arange(16.).reshape(1, 4, 4)


def test_maps_against_masks_by_hand():
    assert not pointing_game(MAP, MASK)[0] and pointing_game(-abs(MAP - 6), MASK)[0]
    assert mass_inside(MAP, MASK)[0] == pytest.approx((5 + 6 + 9 + 10)/MAP.sum())
    assert top_inside(MAP, MASK)[0] == 0 and top_inside(MASK*1., MASK)[0] == 1
    assert top_inside(MAP*MASK + MASK.astype(float)*0 - 1e-9*MAP, MASK)[0] == 1
    assert np.isnan(mass_inside(-MAP, MASK)[0])


def test_negative_values_do_not_speak_for_a_place():
    w = MAP*0
    w[0, 1, 1],w[0, 0, 0] = 1, -9
    assert mass_inside(w, MASK)[0] == 1 and pointing_game(w, MASK)[0]


def test_layers_are_drawn_anew_from_the_answer_down_and_the_model_stays():
    torch.manual_seed(0)
    net = small_cnn(1, 2, widths=(4, 8)).eval()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    state,broken = torch.get_rng_state(),randomised(net, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert [*broken] == ['5', '1.1', '1.0', '0.1', '0.0']
    def same(name): return [torch.equal(broken[name].state_dict()[k], before[k]) for k in ('0.0.weight', '1.0.weight', '5.weight')]
    assert [same(n) for n in ('5', '1.0', '0.0')] == [[True, True, False], [True, False, False], [False]*3]
    again = randomised(net, 1)
    assert all(torch.equal(v, again['0.0'].state_dict()[k]) for k,v in broken['0.0'].state_dict().items())


def test_a_copy_of_a_learner_keeps_its_loaders():
    from types import SimpleNamespace
    learn = SimpleNamespace(model=small_cnn(1, 2, widths=(4,)), dls='loaders')
    other = randomised(learn)['0.0']
    assert other.dls == 'loaders' and other.model is not learn.model
    assert not torch.equal(other.model[0][0].weight, learn.model[0][0].weight)


def test_an_edge_detector_survives_and_a_gradient_does_not():
    torch.manual_seed(0)
    net,x = small_cnn(1, 2, widths=(8, 8)),torch.randn(4, 1, 16, 16)
    ruined = randomised(net, 3)['0.0']
    old,new = (explain(n, x, 'gradients', target=1) for n in (net, ruined))
    assert abs(np.mean(rank_agreement(old, new))) < .5
    edges = np.abs(np.diff(x, axis=-1))
    assert np.allclose(rank_agreement(edges, edges), 1)


def test_shares_by_hand():
    got = share_on([[1., -3, 0, 5]], [[False, True, False, False]], [[True, True, True, False]])
    assert np.allclose(got, [[.75, 1/3]])
    assert np.allclose(share_on(MAP*0, MASK), [[0, .25]])


@pytest.mark.parametrize('call, error, text', [
    (lambda: pointing_game(MAP, MASK & False), DataError, 'mask of case 0 is empty'),
    (lambda: top_inside(MAP, MASK[:, :3]), ValueError, 'they must be alike'),
    (lambda: randomised(nn.ReLU()), ValueError, 'no weights'),
    (lambda: share_on(MAP, MASK & False), DataError, 'nothing was planted in case 0'),
    (lambda: share_on(MAP, MASK[:, :2]), ValueError, 'they must be alike'),
])
def test_bad_input_is_refused(call, error, text):
    with pytest.raises(error, match=text): call()


def test_maps_are_drawn_each_on_its_own_scale():
    fig = show_maps(MAP*10, {'one': MAP, 'flat': MAP*0}, MASK, ['a'], caption='simulated')
    assert len(fig.axes) == 3 and fig.axes[0].get_title() == 'a' and [a.get_ylabel() for a in fig.axes] == ['picture', 'one', 'flat']
    assert fig.axes[1].images[0].get_clim() == (-15, 15)
