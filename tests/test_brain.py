"The simulated brain: signs make the kinds, each is seen by its scanner, blocks stay together, the ideal observer counts"
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from medlearn.data.brain import brain_joint, brain_scans, brain_signs, ideal_observer, KINDS, SCANNERS
from medlearn.kit.cards import card


@pytest.fixture(scope='module')
def brain(): return brain_joint(40)


def test_signs_make_the_kinds():
    s = brain_signs(400, 32, np.random.default_rng(0))
    far = np.hypot(s.mr_y - s.pet_y, s.mr_x - s.pet_x)
    assert ((s.ct_radius > 0) == (s.kind == 1)).all() and ((s.mr_radius > 0) == (s.kind > 1)).all() and (s.pet_radius[s.kind == 3] > 0).all()
    assert (far[s.kind == 3] == 0).all() and (far[s.kind < 3] >= 10).all() and .3 < (s.pet_radius[s.kind == 2] > 0).mean() < .7


def test_each_sign_is_seen_by_its_scanner_only(brain):
    m = brain.more
    def at(picture, who, k):
        return np.array([picture[i, round(m[f'{k}_y'][i]), round(m[f'{k}_x'][i])] for i in np.flatnonzero(who)], float) - np.median(picture[who], (1, 2))
    lesion, calcified, hot = m.kind > 1, m.kind == 1, m.pet_radius > 0
    assert at(brain.parts['ct'], calcified, 'ct').mean() > 40 > abs(at(brain.parts['ct'], lesion, 'mr').mean())
    assert at(brain.parts['mr'][..., 1], lesion, 'mr').mean() > 40 and at(brain.parts['pet'], hot, 'pet').mean() > 60


def test_blocks_of_slices_do_not_cross_the_split(brain):
    assert pd.Series(brain.split).groupby(brain.more.block.to_numpy()).nunique().eq(1).all() and brain.simulated
    again, other = brain_joint(40), brain_joint(40, seed=1)
    assert all((brain.parts[m] == again.parts[m]).all() for m in brain.parts) and (brain.parts['ct'] != other.parts['ct']).any()


def test_the_card_says_simulated(brain):
    c = card('simulated_brain')
    assert c.simulated and 'SIMULATED' in c.title and 'simulated' in c.modality and 'simulated' in repr(brain).lower()
    assert list(c.labels.values()) == KINDS == brain.classes and c.loader == 'medlearn.data.brain:brain_joint'


def test_the_ideal_observer_of_one_kind_a_sign_is_sure():
    s = brain_signs(400, 32, np.random.default_rng(1))
    p = ideal_observer(s, s, SCANNERS)
    assert p.shape == (400, 4) and np.allclose(p.sum(1), 1) and (p.argmax(1) == s.kind).all()
    assert (ideal_observer(s, s, ('mr',))[s.kind > 1, 2:] == .5).all()
    none = s.assign(**{f'{m}_radius': 0. for m in SCANNERS})
    assert (ideal_observer(s[s.kind == 3], none, SCANNERS) == .25).all() # a combination that training never saw


@settings(max_examples=8, deadline=None)
@given(radius=st.floats(2, 6), seed=st.integers(0, 2**16))
def test_a_sign_changes_its_own_scanner_alone(radius, seed):
    tissue, n = np.full((6, 32, 32), 2), 6
    nowhere = pd.DataFrame([{f'{m}_{k}': v for m in SCANNERS for k, v in dict(radius=0., y=16., x=16.).items()}]*n)
    def scans(**kw): return brain_scans(tissue, nowhere.assign(**kw), np.random.default_rng(seed))
    empty = scans()
    for m in SCANNERS:
        one = scans(**{f'{m}_radius': radius})
        assert [o for o in SCANNERS if (one[o] != empty[o]).any()] == [m]
