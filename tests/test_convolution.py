"Sizes, costs and receptive fields of convolutions against PyTorch and against counts by hand"
import nbformat, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from pathlib import Path
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from medlearn.foundations.convolution import count_macs, field_map, out_size, receptive_field


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 7), s=st.integers(1, 5), p=st.integers(0, 4), d=st.integers(1, 4))
def test_as_many_places_as_the_window_has(n, k, s, p, d):
    places = [i for i in range(0, n + 2*p, s) if i + d*(k - 1) < n + 2*p]
    if places: assert out_size(n, k, s, p, d) == len(places) == nn.Conv1d(1, 1, k, s, p, d)(torch.zeros(1, 1, n)).shape[-1]
    else:
        with pytest.raises(ValueError, match='no place'): out_size(n, k, s, p, d)


@pytest.mark.parametrize('bad', [dict(n=0, k=1), dict(n=5, k=0), dict(n=5, k=3, s=0), dict(n=5, k=3, p=-1), dict(n=5, k=3, d=0)])
def test_a_setting_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match='1 or more'): out_size(**bad)


LAYERS = {'convolution': (nn.Conv2d(3, 6, 3, stride=2, padding=1), (3, 9, 9)),
          'grouped': (nn.Conv2d(4, 8, 3, groups=2, bias=False), (4, 9, 8)),
          'dilated, one side longer': (nn.Conv2d(2, 5, (1, 3), dilation=2), (2, 7, 9)),
          'volume': (nn.Conv3d(2, 3, 3), (2, 5, 6, 7)),
          'signal': (nn.Conv1d(2, 3, 5, stride=3), (2, 50)),
          'transposed': (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
          'dense': (nn.Linear(7, 4), (7,)),
          'dense along the last axis': (nn.Linear(7, 4), (5, 7))}

@pytest.mark.parametrize('name', LAYERS)
def test_multiplications_are_half_the_operations_that_torch_counts(name):
    net, shape = LAYERS[name]
    with FlopCounterMode(display=False) as counter: y = net(torch.zeros(1, *shape))
    row = count_macs(net, shape).iloc[0]
    assert 2*row.multiplications == counter.get_total_flops() > 0
    assert row['output shape'] == tuple(y.shape[1:]) and row.parameters == sum(p.numel() for p in net.parameters())


def test_rows_follow_the_layers_and_normalisation_costs_no_products():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2*4*4, 3))
    table = count_macs(net, (1, 6, 6))
    assert table.multiplications.to_dict() == {'0': 2*16*9, '1': 0, '4': 96}
    assert table.parameters.to_dict() == {'0': 20, '1': 4, '4': 99}


def test_a_layer_that_is_used_twice_works_twice_and_is_stored_once():
    layer = nn.Linear(5, 5)
    row = count_macs(nn.Sequential(layer, layer), (5,)).iloc[0]
    assert (row.multiplications, row.parameters) == (50, 30)


def test_counting_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double().train()
    net[1].eval()
    count_macs(net, (1, 8, 8))
    assert net.training and not net[1].training and not net[0]._forward_hooks and net[1].num_batches_tracked == 0


@pytest.mark.parametrize('net', [nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.Embedding(3, 4), nn.Sequential(nn.PReLU())],
                         ids=lambda m: type(m).__name__)
def test_what_cannot_be_counted_is_refused_by_name(net):
    with pytest.raises(ValueError, match='LSTM|MultiheadAttention|Embedding|PReLU'): count_macs(net, (3, 3))


def test_a_network_without_parameters_has_no_rows():
    assert count_macs(nn.Sequential(nn.MaxPool2d(2)), (1, 4, 4)).empty


# The chapter's own definitions, which it does not export

ROOT = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def chapter():
    "Functions and classes of the story, by name"
    import torch.nn.functional as F
    cells = nbformat.read(ROOT/'nbs/foundations/03_convolution.ipynb', 4).cells
    space = dict(torch=torch, nn=nn, np=np, F=F, out_size=out_size, x=torch.zeros(1, dtype=torch.float64))
    for name in ('slide', 'pool', 'slide_all', 'blocks', 'normalised', 'BatchNormByHand', 'network'):
        exec(next(c.source.split('\nkeep(')[0] for c in cells if f'def {name}(' in c.source or f'class {name}(' in c.source), space)
    return space


@settings(max_examples=20, deadline=None)
@given(h=st.integers(4, 9), w=st.integers(4, 9), k=st.integers(1, 4), seed=st.integers(0, 1000))
def test_the_slid_window_is_a_correlation(chapter, h, w, k, seed):
    from scipy.signal import correlate2d
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(h, w)), rng.normal(size=(k, k))
    ours = chapter['slide'](torch.tensor(x), torch.tensor(weights))
    np.testing.assert_allclose(ours, correlate2d(x, weights, 'valid'), atol=1e-12)


def test_pooling_drops_what_is_left_over(chapter):
    x = torch.arange(35.).view(5, 7)
    assert chapter['pool'](x).tolist() == [[8, 10, 12], [22, 24, 26]]
    assert chapter['pool'](x, 3, torch.mean).tolist() == [[8, 11]]


def test_normalised_channels_have_mean_0_and_variance_1_in_training_only(chapter):
    norm, x = chapter['BatchNormByHand'](2), np.random.default_rng(0).normal(5, 3, (4, 2, 6, 6))
    y = norm(torch.tensor(x)).numpy()
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var((0, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(norm.mean.flatten(), .1*x.mean((0, 2, 3)))
    np.testing.assert_allclose(norm.var.flatten(), .9 + .1*x.var((0, 2, 3), ddof=1))
    one = norm.eval()(torch.tensor(x[:1])).numpy()
    np.testing.assert_allclose(one, norm(torch.tensor(x)).numpy()[:1])
    assert abs(one.mean()) > 1


def test_the_stack_sees_as_much_as_that_of_the_classification_chapter(chapter):
    from medlearn.imaging.classification import classic_cnn
    ours, theirs = chapter['blocks'](3), classic_cnn(1, 2)[:3]
    torch.manual_seed(0)
    for net in (ours.eval(), theirs.eval()):
        seen = (field_map(net, side=64) > 0).any(1)
        assert receptive_field(net) == seen.sum() == 22


def test_the_network_gives_two_scores_a_picture(chapter):
    assert chapter['network'](5)(torch.zeros(3, 1, 24, 24)).shape == (3, 2)


layer = st.one_of(st.tuples(st.just('conv'), st.sampled_from([1, 3, 5]), st.integers(1, 2), st.integers(1, 2)), st.just(('pool', 2, 2, 1)), st.just(('avg', 2, 2, 1)))

@settings(max_examples=15, deadline=None)
@given(st.lists(layer, min_size=1, max_size=4), st.integers(0, 10**6))
def test_receptive_field_by_formula_and_by_gradient(layers, seed):
    torch.manual_seed(seed)
    make = dict(conv=lambda k,s,d: nn.Conv2d(1, 1, k, s, padding=d*(k//2), dilation=d), pool=lambda k,s,d: nn.MaxPool2d(k), avg=lambda k,s,d: nn.AvgPool2d(k))
    net = nn.Sequential(*[make[n](k, s, d) for n,k,s,d in layers])
    side = receptive_field(net)
    if side > 60: return
    seen = torch.nonzero(field_map(net, 128, 48).sum(0))
    assert int(seen.max() - seen.min()) + 1 == side

def test_receptive_field_of_a_resnets_stem_and_of_nothing():
    assert receptive_field(nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1))) == 11
    assert receptive_field(nn.ReLU()) == 1
