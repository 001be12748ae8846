"Regression on molecules: the measures are scikit-learn's, also under weights; the network learns a line and refuses other columns"
import numpy as np, pytest

pytest.importorskip('rdkit')
from sklearn.metrics import mean_squared_error, r2_score

from medlearn.foundations.budget import Budget
from medlearn.foundations.evaluation import difference, resample
from medlearn.kit.cards import DataError
from medlearn.molecules import solubility as S


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    y, f = rng.normal(size=50), rng.normal(size=50)
    w = resample(50, 20)
    assert S.rmse(y, f)[0] == pytest.approx(mean_squared_error(y, f)**.5) and S.r_squared(y, f)[0] == pytest.approx(r2_score(y, f))
    assert np.allclose(S.rmse(y, f, w), [mean_squared_error(y, f, sample_weight=v)**.5 for v in w], atol=1e-5)
    assert np.allclose(S.r_squared(y, f, w), [r2_score(y, f, sample_weight=v) for v in w], atol=1e-4)
    assert S.r_squared(y, y)[0] == 1 and S.r_squared(y, np.full(50, y.mean()))[0] == pytest.approx(0, abs=1e-9)
    value, low, high = difference(S.rmse, y, f, y + .1, resample(50, 200))
    assert low > 0 and value == pytest.approx(S.rmse(y, f)[0] - .1, abs=1e-5)


def test_squash_pulls_in_what_lies_far_out():
    x = np.r_[np.zeros(99), 1e6][:, None]*np.ones(3)
    z = S.Squash(x)(x)
    assert z.shape == (100, 3) and float(z.abs().max()) < 3 and float(S.Squash(x)(x + 1).min()) >= float(z.min())


def test_a_network_learns_a_line_and_refuses_other_columns():
    rng = np.random.default_rng(1)
    raw = {s: rng.normal(size=(n, 4)).astype(np.float32) for s, n in dict(train=400, valid=100, test=100).items()}
    y = {s: 5 + 3*v[:, 0] - 2*v[:, 1] for s, v in raw.items()}
    scale = S.Squash(raw['train'])
    x = {s: scale(v) for s, v in raw.items()}
    learn = S.fit_number(x, y, Budget(200), seed=0)
    assert S.r_squared(y['test'], S.predict_number(learn, x['test']))[0] > .8 and learn.scale[0] == pytest.approx(5, abs=.5)
    with pytest.raises(DataError, match='3 numbers a molecule; the network was trained on 4'): S.predict_number(learn, x['test'][:, :3])
