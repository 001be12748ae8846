"The loader against one-by-one processing, masks and boxes that stay together, and trainings that survive"
import os
import signal
import subprocess
import sys
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.core import Callback
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import RocAucBinary, accuracy
from hypothesis import given, settings, strategies as st
from medlearn.data.images import ImageSet
from medlearn.foundations.augmentation import Augment,Normalise
from medlearn.foundations.loading import (channels_first,check_set,copied,pad_boxes,Randomise,tensor_loaders,
                                          TensorLoader,TensorLoaders,TensorSet)
from medlearn.foundations.resuming import Resume
from medlearn.foundations.training import (class_weights,EMA,fit,HalfPrecision,KeepBest,loss_for,predict,
                                           SkipValidation,small_cnn)
from medlearn.kit.chapter import seed_everything
from medlearn.kit.cards import DataError


def squares(n=240, k=2, side=28, channels=None, seed=0, noise=40, depth=None):
    "A square whose brightness is the class"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    shape = (depth,)*(depth is not None) + (side, side) + ((channels,) if channels else ())
    x = rng.integers(0, noise, (n, *shape), dtype=np.uint8)
    at = (slice(None), *[slice(None)]*(depth is not None), slice(8, 20), slice(8, 20))
    x[at] += (y*(200//k)).astype(np.uint8).reshape(-1, *[1]*(x.ndim - 1))
    split = np.repeat(['train', 'valid', 'test'], [n//2, n//4, n - n//2 - n//4])
    return ImageSet(x, y, split, [f'class {i}' for i in range(k)], 'squares')


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    import matplotlib
    matplotlib.use('Agg')


def learner(dls, **kw):
    from fastai.callback.progress import ProgressCallback
    learn = Learner(dls, small_cnn(1, 2), loss_func=CrossEntropyLossFlat(), metrics=[accuracy, RocAucBinary()], **kw)
    learn.remove_cb(ProgressCallback)
    return learn


def test_axes_of_images_and_volumes():
    for shape, want in {(5, 28, 30): (5, 1, 28, 30), (5, 28, 30, 3): (5, 3, 28, 30), (5, 9, 28, 30): (5, 1, 9, 28, 30),
                        (5, 9, 28, 30, 2): (5, 2, 9, 28, 30)}.items():
        assert channels_first(np.zeros(shape, np.uint8)).shape == want
    with pytest.raises(DataError, match=r'\(n, h, w\)'): channels_first(np.zeros((4, 4), np.uint8))
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert (channels_first(x[:, ::-1])[:, 0].numpy() == x[:, ::-1]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70))
def test_every_image_comes_once_an_epoch(n, bs):
    dls = tensor_loaders(squares(3*n + 4), bs=bs, device='cpu')
    seen = torch.cat([y for _, y in dls.train])
    assert sorted(seen.tolist()) == sorted(dls.train.dataset.y[0].tolist()) and sum(1 for _ in dls.train) == len(dls.train)


@pytest.mark.parametrize('n, bs, sizes', [(65, 64, [65]), (129, 64, [64, 65]), (193, 64, [64, 64, 65]), (128, 64, [64, 64]),
                                          (130, 64, [64, 64, 2]), (3, 2, [3]), (3, 1, [1, 1, 1]), (2, 64, [2])])
@pytest.mark.parametrize('odds', [False, True])
def test_no_training_batch_holds_one_image(n, bs, sizes, odds):
    ds = TensorSet(torch.zeros(n, 1, 4, 4), torch.arange(n))
    dl = TensorLoader(ds, bs, True, weights=torch.ones(n) if odds else None)
    for _ in range(2):
        batches = [y for _, y in dl]
        assert [len(y) for y in batches] == sizes and len(dl) == len(sizes)
        assert odds or sorted(torch.cat(batches).tolist()) == list(range(n))
    full = TensorLoader(ds, bs, True, drop_last=True)
    assert [len(y) for _, y in full] == [bs]*(n//bs) and len(full) == n//bs
    still = TensorLoader(ds, bs)
    assert [len(y) for _, y in still] == [bs]*(n//bs) + [n % bs]*(n % bs > 0) and len(still) == -(-n//bs)


def test_the_order_of_other_sizes_is_torchs_own():
    ds = TensorSet(torch.zeros(130, 1, 2, 2), torch.arange(130))
    torch.manual_seed(3)
    got = [y.tolist() for _, y in TensorLoader(ds, 64, True)]
    torch.manual_seed(3)
    assert got == [t.tolist() for t in torch.randperm(130).split(64)]


def test_a_ready_made_network_trains_on_65_images():
    from fastai.vision.all import create_body, create_head, resnet18
    body = create_body(resnet18(weights=None), n_in=1, pretrained=False)
    model = nn.Sequential(body, create_head(512, 2))
    with pytest.raises(ValueError, match='more than 1 value'): model.train()(torch.zeros(1, 1, 32, 32))
    ds = TensorSet(torch.rand(65, 1, 32, 32), torch.arange(65) % 2)
    dls = TensorLoaders(TensorLoader(ds, 64, True), TensorLoader(ds, 64))
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    assert learn.get_preds(ds_idx=0)[0].shape == (65, 2)


def test_one_case_to_train_on_is_refused_in_words():
    with pytest.raises(DataError, match='one case to train on'):
        TensorLoader(TensorSet(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)), 64, True)
    assert len(TensorLoader(TensorSet(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)), 64)) == 1


def test_batches_are_the_normalised_images():
    data = squares()
    dls = tensor_loaders(data, device='cpu')
    train, valid = data.part('train').images/255, data.part('valid').images/255
    want = (valid - train.mean())/train.std(ddof=1)
    np.testing.assert_allclose(torch.cat([x for x, _ in dls.valid])[:, 0], want, atol=1e-4)


def test_fewer_images_on_request_and_balanced_ones():
    assert len(tensor_loaders(squares(), n=10, device='cpu').train.dataset) == 10
    data = squares(400)
    rare = data.take(np.flatnonzero((data.labels == 0) | (np.arange(400) % 20 == 1) | (data.split != 'train')))
    dls = tensor_loaders(rare, balanced=True, device='cpu')
    drawn = np.mean([torch.cat([y for _, y in dls.train]).float().mean() for _ in range(10)])
    assert (rare.part('train').labels.mean() < .15) and .4 < drawn < .6
    assert torch.equal(torch.cat([y for _, y in dls.valid]), torch.as_tensor(rare.part('valid').labels))


def test_augment_with_nothing_to_do_changes_nothing():
    for shape in ((4, 2, 9, 9), (4, 2, 8, 13), (3, 1, 6, 9, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(Augment()(x), x, atol=1e-5, rtol=0)


def test_augment_mirrors_all_or_none():
    x = torch.randn(6, 1, 8, 10)
    torch.testing.assert_close(Augment(flip=1)(x), x.flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(Augment(flip_v=1)(x), x.flip(-2), atol=1e-5, rtol=0)
    v = torch.randn(2, 1, 5, 8, 10)
    torch.testing.assert_close(Augment(flip_d=1)(v), v.flip(-3), atol=1e-5, rtol=0)


def test_rotation_keeps_shapes_in_oblong_images():
    "A disc stays a disc: axes of unequal length do not shear it"
    h, w = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(96) - 47.5, indexing='ij')
    disc = ((h**2 + w**2) < 15**2).float()[None, None].repeat(16, 1, 1, 1)
    torch.manual_seed(0)
    assert (Augment(rotate=90)(disc) - disc).abs().mean() < .01


@pytest.mark.parametrize('size', [(48, 64), (16, 32, 40)])
@pytest.mark.parametrize('elastic', [0, .02])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_mask_box_and_image_move_together(size, elastic, seed):
    aug, n = Augment(rotate=15, zoom=.15, crop=.05, flip=.5, flip_v=.5, flip_d=.5, elastic=elastic), 8
    centre = tuple(slice(s//2 - 4, s//2 + 4) for s in size)
    masks = torch.zeros(n, *size, dtype=torch.long)
    masks[(slice(None), *centre)] = 1
    box = torch.tensor([*[c.start for c in centre[::-1]], *[c.stop for c in centre[::-1]]], dtype=torch.float32)
    torch.manual_seed(seed)
    x, moved = aug(masks[:, None].float(), masks=masks)
    torch.manual_seed(seed)
    _, boxes = aug(masks[:, None].float(), boxes=box.repeat(n, 1, 1))
    assert moved.dtype == masks.dtype and set(moved.unique().tolist()) <= {0, 1}
    assert ((x[:, 0] > .5) == (moved == 1)).float().mean() > .98
    for m, b in zip(moved, boxes[:, 0]):
        around = torch.cat([m.nonzero().amin(0).flip(0), m.nonzero().amax(0).flip(0) + 1])
        assert (around - b).abs().max() < 1.6


def test_boxes_out_of_sight_are_emptied_with_their_label():
    boxes, labels = pad_boxes([np.array([[0, 0, 4, 4], [10, 10, 20, 20]]), np.zeros((0, 4))], [[1, 2], []])
    assert boxes.shape == (2, 2, 4) and labels.tolist() == [[1, 2], [0, 0]]
    shift = Augment()
    shift.affine = lambda n, nd, device: (torch.eye(2).repeat(n, 1, 1), torch.full((n, 2), .5))
    x, b, l = Randomise(shift, 'boxes')((torch.zeros(2, 1, 32, 32), torch.as_tensor(boxes), torch.as_tensor(labels)), split_idx=0)
    assert l.tolist() == [[0, 2], [0, 0]]
    torch.testing.assert_close(b[0], torch.tensor([[0, 0, 0, 0], [2., 2, 12, 12]]))


def test_validation_is_never_augmented():
    dls = tensor_loaders(squares(), augment=Augment(rotate=90, light=.5), device='cpu')
    a, b = ([x for x, _ in dls.valid][0] for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(*([x for x, _ in dls.train.new(shuffle=False)][0] for _ in range(2)))


def faults():
    data = squares(60)
    f = data.images.astype(np.float32)
    f[17, 3, 3] = np.inf
    return {'60 images but 59 labels': replace(data, labels=data.labels[1:]), '60 images but 58 split': replace(data, split=data.split[2:]),
            'image 17 has NaN or infinite': replace(data, images=f), 'single class': replace(data, labels=np.zeros(60, int)),
            r"image 4 is \(20, 28\), image 0 is \(28, 28\)": replace(data, images=[i[:20] if k == 4 else i for k, i in enumerate(data.images)]),
            "split 'valid' is empty": replace(data, split=np.where(data.split == 'valid', 'test', data.split)),
            'patient 3 is in': replace(data, groups=np.where(np.arange(60) % 7 == 0, 3, 100 + np.arange(60)))}


@pytest.mark.parametrize('says', list(faults()))
def test_what_cannot_be_learned_from_is_refused(says):
    with pytest.raises(DataError, match=says): tensor_loaders(faults()[says], device='cpu')


def test_a_shared_patient_passes_only_when_asked():
    bad = faults()['patient 3 is in']
    assert len(tensor_loaders(bad, share_patients=True, device='cpu').train.dataset) == 30


def test_class_weights_even_out():
    w = class_weights(np.array([0]*90 + [1]*10), 2)
    torch.testing.assert_close(w*torch.tensor([90., 10.]), torch.tensor([50., 50.]))
    with pytest.raises(DataError, match='class 1 has no training image'): class_weights(np.zeros(5, int), 2)


def test_fastai_reads_the_loader(tmp_path):
    data = squares()
    dls = tensor_loaders(data, bs=16, augment=Augment(crop=.05), device='cpu')
    learn = learner(dls, path=tmp_path)
    dls.show_batch(max_n=4)
    assert learn.lr_find(show_plot=False, num_it=10).valley > 0
    learn.fit_one_cycle(3, 1e-2)
    look = ClassificationInterpretation.from_learner(learn)
    assert look.confusion_matrix().sum() == 60 and list(look.vocab) == ['class 0', 'class 1']
    losses, rows = look.top_losses(3)
    p, y = learn.get_preds()
    torch.testing.assert_close(losses, torch.nn.functional.nll_loss(p.log(), y, reduction='none').topk(3)[0], atol=1e-4, rtol=1e-3)
    look.plot_top_losses(3)
    learn.show_results(max_n=3)
    assert learn.tta(n=2)[0].shape == (60, 2)
    said, number, prob = learn.predict(data.images[1])
    assert said == f'class {number}' and abs(prob.sum() - 1) < 1e-5
    test = data.part('test')
    a = learn.get_preds(dl=dls.test_dl(test))[0]
    np.testing.assert_allclose(a, predict(learn, test.images, mirror=False), atol=1e-5)
    b, truth = learn.get_preds(dl=dls.test_dl(test, with_labels=True))
    assert torch.equal(a, b) and truth.tolist() == test.labels.tolist()


def test_volumes_and_masks_train_and_show():
    data = squares(48, depth=6)
    dls = tensor_loaders(data, bs=8, augment=Augment(rotate=10, flip=.5), device='cpu')
    dls.show_batch(max_n=2)
    learn = fit(data, dls, small_cnn(1, 2, nd=3), epochs=6, lr=1e-2)
    assert (predict(learn, data.part('test').images).argmax(1) == data.part('test').labels).mean() > .8
    flat = squares(24)
    x, masks = channels_first(flat.images), torch.as_tensor((flat.images > 60).astype(np.int64))
    ds = TensorSet(x, masks, kind='mask', vocab=['background', 'square'], split_idx=0)
    dl = TensorLoader(ds, bs=8, shuffle=True, after_batch=[Normalise(x.float().mean().view(1, 1, 1, 1), x.float().std().view(1, 1, 1, 1)),
                                                            Randomise(Augment(rotate=20), 'mask')])
    dl.show_batch(max_n=2)
    xb, yb = dl.one_batch()
    assert xb.shape == (8, 1, 28, 28) and yb.shape == (8, 28, 28) and yb.dtype == torch.int64


@pytest.mark.parametrize('skip', [[], [SkipValidation()]], ids=['validated', 'never validated'])
def test_averaged_weights_follow_their_formula(skip):
    dls = tensor_loaders(squares(64), bs=16, device='cpu')
    seen, ema = [], EMA(.9)
    class Watch(Callback):
        order = 90
        def after_step(self): seen.append(copied(self.learn.model)['0.0.weight'])
    learn = learner(dls)
    learn.fit(2, 1e-2, cbs=[ema, Watch(), *skip])
    want = seen[0]
    for t, w in enumerate(seen[1:], 1):
        keep = min(.9, (1 + t)/(10 + t))
        want = keep*want + (1 - keep)*w
    torch.testing.assert_close(copied(learn.model)['0.0.weight'], want, atol=1e-5, rtol=1e-4)


def test_half_precision_runs_where_the_images_are():
    data = squares(64)
    kinds = []
    class Watch(Callback):
        def after_pred(self): kinds.append(self.pred.dtype)
    learn = fit(data, tensor_loaders(data, device='cpu'), small_cnn(1, 2), 1, cbs=[HalfPrecision(), Watch()])
    assert kinds[0] == torch.bfloat16 and next(learn.model.parameters()).dtype == torch.float32


def test_label_smoothing_reaches_the_loss():
    assert loss_for(squares(), smooth=.1).func.label_smoothing == .1


def night(file=None, crash_at=None, extra=(), epochs=4, kill=False):
    "A training with all that has a memory"
    class Power(Callback):
        def before_batch(self):
            if self.training and self.epoch == crash_at and self.iter == 1:
                if kill: os.kill(os.getpid(), signal.SIGKILL)
                raise SystemError('power failure')
    seed_everything(5)
    data = squares(160, noise=180)
    dls = tensor_loaders(data, bs=16, augment=Augment(rotate=20, light=.2), device='cpu')
    learn = learner(dls, cbs=[MixUp(.4)])
    with learn.no_logging():
        learn.fit_one_cycle(epochs, 3e-3, cbs=[EMA(), KeepBest('roc_auc_score'), Power(), *extra, *([Resume(file)] if file else [])])
    return learn


def same(a, b):
    assert [list(v) for v in a.recorder.values] == [list(v) for v in b.recorder.values]
    assert a.validate() == b.validate()
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(x, y)


@pytest.mark.parametrize('crash_at', [0, 1, 3])
def test_a_crashed_training_ends_like_an_undisturbed_one(tmp_path, crash_at):
    file = tmp_path/'deep'/'run.pt'
    with pytest.raises(SystemError): night(file, crash_at)
    assert file.is_file() == (crash_at > 0) and not list(tmp_path.rglob('*.part'))
    same(night(), night(file))
    same(night(), night(file))


def test_a_killed_process_leaves_a_file_to_go_on_from(tmp_path):
    file = tmp_path/'run.pt'
    code = f'import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import torch; torch.set_num_threads({torch.get_num_threads()}); from test_training import night; night({str(file)!r}, 2, kill=True)'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    same(night(), night(file))


def test_early_stopping_resumes_as_stopped(tmp_path):
    stop = lambda: [EarlyStoppingCallback('roc_auc_score', patience=1)]
    a = night(extra=stop(), epochs=8)
    file = tmp_path/'run.pt'
    b = night(file, extra=stop(), epochs=8)
    assert len(a.recorder.values) < 8
    same(a, b)
    same(night(extra=stop(), epochs=8), night(file, extra=stop(), epochs=8))


def test_a_foreign_or_broken_file_is_refused(tmp_path):
    file = tmp_path/'run.pt'
    night(file)
    with pytest.raises(DataError, match='another training: its epochs'): night(file, epochs=6)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match='delete it'): night(file)


def test_a_checkpoint_runs_no_code(tmp_path):
    import pickle
    file, trace = tmp_path/'run.pt', tmp_path/'trace'
    class Evil:
        def __reduce__(self): return os.mkdir, (str(trace),)
    torch.save(dict(settings=Evil()), file, pickle_module=pickle)
    with pytest.raises(DataError, match='delete it'): night(file)
    assert not trace.exists()


def test_the_best_weights_are_copies():
    dls = tensor_loaders(squares(96, noise=180), bs=16, device='cpu')
    learn = learner(dls)
    class Ruin(Callback):
        order = 70
        def before_batch(self):
            if self.training and self.epoch == self.n_epoch - 1: self.opt.set_hypers(lr=3.)
    keep = KeepBest('valid_loss')
    with learn.no_logging(): learn.fit_one_cycle(3, 3e-3, cbs=[keep, Ruin()])
    values = [v[1] for v in learn.recorder.values]
    assert keep.at == int(np.argmin(values)) < 2
    assert learn.validate()[0] == pytest.approx(min(values), abs=1e-5)


def test_moments_in_pieces():
    from medlearn.foundations.augmentation import moments
    x = torch.randint(0, 256, (150, 3, 7, 9), dtype=torch.uint8)
    mean, std = moments(x)
    torch.testing.assert_close(mean, x.float().mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(std, x.float().std((0, 2, 3), keepdim=True, correction=0))


def test_a_mask_set_brings_its_masks_or_its_boxes():
    from medlearn.data.masks import MaskSet
    flat = squares(48)
    split = np.repeat(['train', 'valid', 'test'], 16)
    masks = (flat.images > 60).astype(np.uint8)
    both = MaskSet(flat.images, masks, ['background', 'square'], split, 'squares')
    x, y = tensor_loaders(both, bs=8, augment=Augment(rotate=10), device='cpu').one_batch()
    assert y.shape == (8, 28, 28) and y.max() == 1
    boxes, labels = [np.array([[8., 8, 20, 20]])]*48, [np.array([1])]*48
    only = MaskSet(flat.images, None, ['background', 'square'], split, 'squares', boxes=boxes, labels=labels)
    dls = tensor_loaders(only, bs=8, augment=Augment(flip=1), device='cpu')
    x, b, l = dls.one_batch()
    torch.testing.assert_close(b[0, 0], torch.tensor([8., 8, 20, 20]))
    dls.show_batch(max_n=2)


# What the chapter says it does

def story(room='08_training'):
    "The code cells of the chapter that are not exported"
    path = Path(__file__).parent.parent/f'nbs/foundations/{room}.ipynb'
    code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    return [c for c in code if '#| export' not in c]


def defined(start, **names):
    "What the one cell that begins so defines"
    cell, = [c for c in story() if c.startswith(start)]
    exec(cell, names)
    return names


def gains(**rows): return pd.DataFrame(rows, index=['gain', 'low', 'high']).T


@pytest.mark.parametrize('rows,want', [
    (dict(plain=(0, 0, 0), a=(.02, -.01, .05), b=(-.01, -.02, 0)), 'plain'),
    (dict(plain=(0, 0, 0), a=(.02, -.01, .05), b=(.01, .005, .015)), 'b'),
    (dict(plain=(0, 0, 0), a=(.02, .01, .03), b=(.01, .005, .015)), 'a'),
    (dict(plain=(0, 0, 0), a=(.02, np.nan, np.nan)), 'plain')], ids=['within the spread', 'the surer', 'the larger', 'one seed'])
def test_the_recipe_is_chosen_by_its_interval(rows, want):
    assert defined('def choose')['choose'](gains(**rows)) == want


def test_the_chosen_recipe_is_the_one_that_is_tested():
    tested, = [c for c in story() if 'final.gain(p, alone)}' in c]
    assert 'trained(seed, **changes[chosen])' in tested
    assert 'chosen = choose(table)' in '\n'.join(story())
    assert not any(word in tested for word in ('EMA', 'light', 'MixUp', 'weighted', 'balanced'))


def test_every_recipe_reaches_the_training():
    "A switch that is never thrown leaves a recipe like the plain one"
    changes = defined('changes =', light='augment', EMA=EMA, MixUp=MixUp, HalfPrecision=HalfPrecision)['changes']
    def fit(data, dls, model, *a, cbs, **kw): return dls, a, [type(c) for c in cbs], kw
    trained = defined('def trained', seed_everything=lambda seed: None, tensor_loaders=lambda data, **kw: kw, fit=fit, small_cnn=small_cnn,
                      predict=print, partial=lambda f, learn, **kw: (learn, kw), data=None, x=torch.zeros(1, 1), lr=1e-3,
                      cfg=SimpleNamespace(epochs=1), env=SimpleNamespace(device='cpu'))['trained']
    got = [repr(trained(0, **how)) for how in changes.values()]
    assert len(got) == 9 and len(set(got)) == 9
    assert not [c for c in story() if ' in str(' in c], 'the text of a function is not what it does'


def test_the_night_is_resumed_from_the_crash_and_not_from_the_end():
    "`at_crash` is read after the crash and before the training goes on"
    cell, = [c for c in story('12_resuming') if 'at_crash =' in c]
    lines = cell.splitlines()
    at = [next(i for i, line in enumerate(lines) if word in line) for word in ('Power(crash_at)', 'at_crash =', 'went_on =')]
    assert at == sorted(at)
