"Averaging held against PyTorch and against pooled steps; what is refused, named by hospital"
import numpy as np, pandas as pd, pytest, torch

from medlearn.foundations.federation import (by_hospital, check_weights, federated_rounds, first_weights, local_training, loss_gradient, scan_hospitals,
                                             scores_of, weighted_average)
from medlearn.kit.cards import DataError

rng = np.random.default_rng(0)
x, y = rng.normal(size=(90, 12)), (rng.random(90) < .4).astype(float)
where = np.repeat(['a', 'b', 'c'], [50, 30, 10])
houses = by_hospital(x, y, where)


def test_gradient_is_that_of_pytorch():
    net = first_weights(12, 5, seed=1, dtype=np.float64)
    t = {k: torch.tensor(v, requires_grad=True) for k, v in net.items()}
    z = (torch.tensor(x)@t['w1'] + t['b1']).relu()@t['w2'] + t['b2']
    torch.nn.functional.binary_cross_entropy_with_logits(z, torch.tensor(y)).backward()
    np.testing.assert_allclose(scores_of(net, x), z.detach().numpy())
    for k, g in loss_gradient(net, x, y).items(): np.testing.assert_allclose(g, t[k].grad.numpy(), atol=1e-12)


def test_local_training_is_torchs_sgd():
    net = first_weights(12, 5, dtype=np.float64)
    model = torch.nn.Sequential(torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)).double()
    model.load_state_dict({'0.weight': torch.tensor(net['w1'].T), '0.bias': torch.tensor(net['b1']), '2.weight': torch.tensor(net['w2'][None]), '2.bias': torch.tensor(net['b2'])})
    opt = torch.optim.SGD(model.parameters(), .3)
    for _ in range(7):
        opt.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(torch.tensor(x))[:, 0], torch.tensor(y)).backward()
        opt.step()
    new = local_training(net, x, y, 7, .3, 1000)
    np.testing.assert_allclose(new['w1'].T, model[0].weight.detach().numpy(), atol=1e-12)
    assert np.abs(new['w1'] - net['w1']).max() > 1e-3 and (net['b1'] == 0).all() # what arrived is left as it was


def test_one_step_averaged_is_the_pooled_step():
    net = first_weights(12, dtype=np.float64)
    nets = [local_training(net, a, b, 1, .5, 1000) for a, b in houses.values()]
    pooled, shared = local_training(net, x, y, 1, .5, 1000), weighted_average(nets, [50, 30, 10])
    for k in net: np.testing.assert_allclose(shared[k], pooled[k], atol=1e-14)
    assert max(np.abs(weighted_average(nets, [1, 1, 1])[k] - pooled[k]).max() for k in net) > 1e-4
    again = federated_rounds(net, houses, 1, 1, .5, 1000)
    for k in net: np.testing.assert_allclose(again[k], shared[k], atol=1e-14)


def test_rounds_combine_and_tamper():
    net = first_weights(12)
    seen = []
    federated_rounds(net, houses, 3, 2, combine=lambda old, nets, sizes: seen.append((len(nets), sizes)) or old)
    assert seen == [(3, [50, 30, 10])]*3
    same = federated_rounds(net, houses, 2, 2, tamper=lambda r, old, nets: [old]*3)
    for k in net: np.testing.assert_allclose(same[k], net[k], rtol=1e-6)
    assert same['w1'].dtype == np.float32


def test_weights_that_do_not_fit_are_refused():
    like = first_weights(12)
    turned = check_weights(dict(reversed(like.items())), like)
    assert list(turned) == list(like) and all(turned[k] is v for k, v in like.items())
    for net, why in ((first_weights(12, 8), 'w1 has the shape'), ({k: v.astype(float) for k, v in like.items()}, 'of type float64'), (dict(like, more=like['b1']), 'tensors'),
                     (dict(like, b1=np.full_like(like['b1'], np.inf)), '16 numbers that are NaN or infinite'), ([1], 'tensors list')):
        with pytest.raises(DataError, match=f"hospital 'north': .*{why}"): check_weights(net, like, 'north')
    for sizes in ([1, 0], [1, -2], [1, np.nan], [1]):
        with pytest.raises(DataError, match='one size above 0'): weighted_average([like, like], sizes)
    with pytest.raises(DataError, match='nothing to average'): weighted_average([], [])


def test_hospitals():
    t = pd.DataFrame(dict(patient=list('aabbcc'), slice_thickness=[1., 2.5, 2.5, 2.5, .6, .6]))
    assert list(scan_hospitals(t)) == ['1 mm', '1 mm', '2.5 mm', '2.5 mm', 'below 1 mm', 'below 1 mm'] # a patient belongs to one
    many = pd.DataFrame(dict(patient=np.arange(250) // 2, slice_thickness=2.5))
    cut = scan_hospitals(many, most=50)
    assert set(cut) == {'2.5 mm, a', '2.5 mm, b', '2.5 mm, c'} and (many.groupby('patient').patient.count() == 2).all()
    assert pd.Series(cut).groupby(many.patient).nunique().max() == 1 and pd.Series(cut)[::2].value_counts().max() <= 50
    with pytest.raises(DataError, match='patient b: a slice thickness of nan'): scan_hospitals(t.assign(slice_thickness=[1, 1, np.nan, np.nan, 1, 1]))
    with pytest.raises(DataError, match='at least one patient'): scan_hospitals(t, most=0)
    with pytest.raises(DataError, match="'c' has 10 cases"): by_hospital(x, y, where, least=20)
    with pytest.raises(DataError, match='one of each'): by_hospital(x, y[:-1], where)
    with pytest.raises(DataError, match='without cases'): local_training(first_weights(12), x[:0], y[:0], 1)
