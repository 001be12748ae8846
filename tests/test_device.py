"Everything that trains also keeps a GPU's rules: on a pretended one, as no machine that tests needs a real one (pretended_gpu/rules.py)"
import sys
from pathlib import Path

import numpy as np, pytest, torch
from fastai.learner import Learner
from torch import nn

sys.path.insert(0, str(Path(__file__).parent/'pretended_gpu'))
import test_detection, test_forecasting, test_followup, test_fusion, test_judging, test_segmentation
import test_sequences_ecg, test_sequences_entities, test_sequences_records, test_sequences_text, test_survival, test_voxels
from medlearn.data.cohorts import landmark
from medlearn.data.rhythms import simulated_ecg
from medlearn.data.text import Vocab
from medlearn.foundations.sequences import read_all, sequence_net
from medlearn.foundations.augmentation import Augment
from medlearn.foundations.budget import Budget
from medlearn.foundations.loading import tensor_loaders
from medlearn.foundations import judging
from medlearn.foundations.training import EMA,features,fit,one_cycle,predict,small_cnn
from medlearn.foundations.tiles import Crops
from medlearn.imaging import detection, diffusion, followup, fusion, generation, retrieval, segmentation, voxels
from medlearn.sequences import ecg, entities, forecasting, records, survival, text
from rules import pretended_gpu


@pytest.fixture
def gpu():
    with pretended_gpu() as count: yield count


# The rules

def test_the_rules_are_those_of_a_gpu(gpu):
    here, x = torch.ones(3), torch.ones(3, device='cuda')
    assert (x + 1).device == x[:2].device == x.to(torch.float64).device == torch.zeros_like(x).device == torch.device('cuda', 0) and here.device.type == 'cpu'
    assert (torch.tensor(2.)*x).is_cuda and x[torch.tensor([0])].is_cuda and float(x.sum()) == 3 and x.cpu().numpy().sum() == 3
    for wrong in (lambda: here + x, lambda: torch.cat([here, x]), lambda: torch.stack([here.sum(), x.sum()]), lambda: here.add_(x), lambda: nn.Linear(3, 1)(x),
                  lambda: nn.Linear(3, 1, device='cuda')(here)):
        with pytest.raises(RuntimeError, match='at least two devices'): wrong()
    with pytest.raises(RuntimeError, match='indices should be'): here[torch.tensor([0], device='cuda')]
    with pytest.raises(RuntimeError, match='generator'): torch.randn(3, device='cuda', generator=torch.Generator())
    for wrong in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match='to numpy'): wrong()
    with pytest.raises(NotImplementedError, match='not implemented for torch.int64'): x.long()[None]@x.long()[:, None]


def test_a_step_there_is_the_step_here(gpu):
    def weights(device):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device), torch.arange(12.).view(3, 4)
        opt = torch.optim.Adam(net.parameters())
        net(x.to(device)).square().mean().backward()
        opt.step()
        assert {p.grad.device.type for p in net.parameters()} == {device}
        return torch.cat([p.detach().cpu().flatten() for p in net.parameters()])
    assert torch.equal(weights('cuda'), weights('cpu')) and gpu[True] > 0


def test_outside_nothing_is_pretended():
    was = torch.cuda.is_available(), torch.load
    with pretended_gpu(): assert torch.cuda.is_available() and torch.load is not was[1]
    assert (torch.cuda.is_available(), torch.load) == was


# What trains. Each gives its network, which has to lie there, and has been asked for answers

def classifier():
    data = test_judging.squares()
    learn = fit(data, tensor_loaders(data, bs=16, augment=Augment(rotate=9, flip=.5, elastic=.1, light=.1), device='cuda'), small_cnn(1, 2, widths=(4, 8)), 1)
    assert np.isfinite(predict(learn, data.images)).all() and np.isfinite(features(learn, data.images)).all()
    return learn.model


def segmenter():
    data = test_segmentation.discs()
    learn = segmentation.mask_learner(data, net=dict(widths=(4, 8)), augment=Crops(32, Augment(flip=.5)), n=8, bs=4, device='cuda')
    one_cycle(learn, 1, 1e-3, cbs=EMA(.9))
    assert np.isfinite(segmentation.predict_masks(learn, data.images[:3])).all()
    return learn.model


def volume_segmenter():
    data = test_voxels.balls()
    learn = voxels.fit_volumes(data, voxels.unet3d(2, (4, 8)), Budget(3), bs=2, device='cuda')
    assert voxels.segment(learn, data.part('test'), 32, 16).shape == data.part('test').masks.shape
    return learn.model


def detector(stages):
    data = test_detection.squares(32)
    dls = tensor_loaders(data, bs=8, augment=Augment(flip=.5), kind='boxes', device='cuda')
    net = test_detection.small()
    if stages == 1: learn = Learner(dls, detection.PointDetector(net).to('cuda'), loss_func=detection.PointLoss(4))
    else: learn = Learner(dls, detection.two_stage(net, 1, np.array([[8., 8]]), (32, 32), hidden=16).to('cuda'), loss_func=detection.sum_losses, cbs=detection.GiveTargets())
    one_cycle(learn, 1, 1e-3, validate=True)
    assert len(detection.detect(learn, data.images[:3])) == 3
    return learn.model


def generator():
    data, play = test_judging.squares(), dict(latent=4, bs=16, width=4, device='cuda')
    diffusion.train_vae(data.part('train'), 2, **play)
    judging.generate(diffusion.train_diffusion(data.part('train'), 2, 8, 2, bs=16, device='cuda'), [0, 1])
    gen = generation.Generator(16, latent=4, width=4).to('cuda')
    generation.play(gen, generation.Critic(16, width=4, norm=True).to('cuda'), judging.signed(data.images, 'cuda'), 2, bs=16)
    gen = generation.train_wgan(data.part('train'), 6, **play)
    assert judging.generate(gen, [0, 1]).dtype == np.uint8
    return gen


def fused():
    data = test_fusion.joint()
    learn = fusion.fit_fusion(data, 'attention', epochs=1, bs=32, width=8, widths=(4, 8), hide=.3, augment=fusion.JointAugment(Augment(rotate=9)), device='cuda')
    assert np.isfinite(fusion.predict_joint(learn, data.part('test'))).all() and np.isfinite(fusion.attention_weights(learn, data.part('test'))).all().all()
    return learn.model


def registered():
    Q, x = followup, test_followup.scans().to('cuda')
    motion = Q.rigid(torch.tensor([[8., -6, 5, 3, -2, 1]]*3, device='cuda'))
    y = Q.warp(x, motion, 2.)
    assert np.isfinite(Q.residual(motion, Q.rigid(Q.register(x, y, 2., steps=4)))).all().all()
    net = Q.MotionNet(16, (4, 4, 4)).to('cuda')
    Q.motion_error(net(torch.cat([x, y], 1)), motion).backward()
    turned = Q.Turned()
    turned.learn = type('', (), dict(training=True, x=torch.cat([x, y], 1), y=motion))
    turned.before_batch()
    retrieval.NTXent()(torch.randn(6, 5, device='cuda'))
    return net


def reader(kind):
    data = test_sequences_text.made_up(48)
    vocab, sets = test_sequences_text.parts(data)
    if kind == 'awd':
        lm = text.language_model(data.part('train').text, data.part('valid').text, vocab, Budget(4), 8, 12, device='cuda')
        net = text.ReportNet(text.AWD(len(vocab), 8, 12).start_from(lm), 2)
    else: net = sequence_net(len(vocab), 2, kind, 8, 1, 'mean', words=True)
    learn = text.fit_reader(net, sets['train'], sets['valid'], Budget(4), 1e-3, 8, 'cuda')
    assert np.isfinite(read_all(learn, sets['test'])).all() and len(text.missed(learn.model, sets['test'].x[0, :4]))
    if kind == 'transformer': assert text.looked_at(learn.model, sets['test'].x[0, :4]).shape[-1] == 4
    return learn.model


def tagger():
    _, vocab, tags, data = test_sequences_entities.ner_sets(30)
    learn = entities.fit_tagger(test_sequences_entities.build('lstm', vocab, tags), data.take(range(20)), data.take(range(20, 30)), Budget(4), bs=8, device='cuda')
    assert len(entities.tags_of(learn, data)) == 30
    return learn.model


def curves():
    x, t, c = test_survival.study(60)
    part = (x, *survival.cause_intervals(t, c, test_survival.EDGES, 2))
    net = survival.fit_hazards(survival.HazardNet(3, 5, 2, 8), part, part, Budget(3), device='cuda')
    assert np.isfinite(survival.log_odds(net, x)).all()
    return net


def risk():
    cohort = landmark(test_sequences_records.made(), 100, 500, 'ill')
    book = records.CodeBook.of(cohort)
    steps = records.record_set(cohort, book, test_sequences_records.EDGES)
    learn = records.fit_records(records.record_net(len(book), 5, width=8), steps, steps, Budget(3), 1e-2, 32, 'cuda')
    assert np.isfinite(read_all(learn, steps)).all()
    return learn.model


def ecg_reader(kind):
    data = simulated_ecg(48, rate=100, seed=3)
    read = ecg.fit_ecg(data, kind, Budget(3), weighted=True, device='cuda', **dict(widths=(4, 8)) | (dict(state=8) if kind != 'cnn' else {}))
    assert np.isfinite(read(data.part('test'))).all()
    return read.learn.model


def forecaster():
    made = {s: test_forecasting.many(60, k) for k, s in enumerate(('train', 'valid'))}
    plan = forecasting.Plan.of(made['train'], size=4, horizon=2)
    train, valid = (plan.windows(r) for r in made.values())
    learn = forecasting.train_forecaster(plan, train, valid, 'lstm', width=8, budget=Budget(3), bs=16, device='cuda')
    assert np.isfinite(forecasting.forecast(learn, plan, valid)).all()
    return learn.model


@pytest.mark.parametrize('train,kw', [(classifier, {}), (segmenter, {}), (volume_segmenter, {}), (detector, dict(stages=1)), (detector, dict(stages=2)), (generator, {}),
                                      (fused, {}), (registered, {}), (reader, dict(kind='awd')), (reader, dict(kind='gru')), (reader, dict(kind='transformer')),
                                      (tagger, {}), (risk, {}), (curves, {}), (ecg_reader, dict(kind='cnn')), (ecg_reader, dict(kind='cnn+attend')), (forecaster, {})],
                         ids=lambda v: v.__name__ if callable(v) else '-'.join(map(str, v.values())))
def test_it_trains_and_answers_there(gpu, train, kw):
    torch.manual_seed(0)
    assert {p.device.type for p in train(**kw).parameters()} == {'cuda'}
    assert gpu[True] > gpu[False], f'{gpu[False]} operations were left to the CPU, and {gpu[True]} were not'
