"Tiles that equal the whole: in 2D and 3D, from disk, with the receptive field as margin; crops"
import math, subprocess, sys

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from medlearn.foundations.tiles import AnySize, Crops, field_radius, tiled
from medlearn.imaging.segmentation import UNet
from medlearn.kit.cards import DataError


def test_crops_keep_image_and_mask_together():
    x = torch.arange(2*20*24).view(2, 1, 20, 24)
    a, b = Crops(8)(x, x[:, 0])
    assert a.shape == (2, 1, 8, 8) and (a[:, 0] == b).all() and Crops(99)(x, x[:, 0])[0].shape == x.shape


def test_aimed_crops_hold_the_foreground():
    m = torch.zeros(50, 40, 40, dtype=torch.int64)
    m[:49, 0, 39] = 1
    crop = lambda aim: Crops(8, aim=aim)(m[:, None].float(), m)[1].flatten(1).any(1)
    assert crop(1).tolist() == [True]*49 + [False] and crop(0).sum() < 10


def stack(nd, k=2, pool=True):
    torch.manual_seed(0)
    conv, pools = ((nn.Conv2d, nn.AvgPool2d), (nn.Conv3d, nn.AvgPool3d))[nd-2]
    layers = [conv(1, 4, 3, padding=1), nn.ReLU(), pools(2), conv(4, 4, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), conv(4, k, 3, padding=1)]
    return nn.Sequential(*layers).eval()


@settings(max_examples=25, deadline=None)
@given(h=st.integers(2, 60), w=st.integers(2, 60), tile=st.sampled_from([20, 28, 36]))
def test_tiles_equal_the_whole(h, w, tile):
    f = AnySize(stack(2), 2)
    x = torch.randn(1, h, w)
    with torch.no_grad(): whole = f(x[None])[0].numpy()
    assert np.allclose(tiled(f, x, tile, 12, 2), whole, atol=1e-5)


@pytest.mark.parametrize('size', [(20, 24, 30), (12, 12, 40)])
def test_tiles_of_volumes_equal_the_whole(size):
    f, x = stack(3), torch.randn(1, *size)
    with torch.no_grad(): whole = f(x[None])[0].numpy()
    assert np.allclose(tiled(f, x.numpy(), (16, 18, 20), 12, 2), whole, atol=1e-5)


@pytest.mark.parametrize('square', [1, 2])
def test_unet_in_tiles_with_its_receptive_field_as_margin(square):
    torch.manual_seed(0)
    net = UNet(1, 2, (4, 8, 16), square)
    far = field_radius(net, side=256, multiple=8)
    margin = math.ceil(far/8)*8
    x = torch.randn(1, 300, 210)
    f = AnySize(net.eval(), 8)
    with torch.no_grad(): whole = f(x[None])[0].numpy()
    assert far < 70 and np.allclose(tiled(f, x, 2*margin + 32, 2*margin, 8), whole, atol=1e-4)
    assert not np.allclose(tiled(f, x, 64, 0, 8), whole, atol=1e-4)


def test_the_receptive_field_is_exact_for_a_stack_of_convolutions():
    same = lambda k: nn.Conv2d(1, 1, k, padding=k//2)
    assert field_radius(nn.Sequential(same(3), same(5), same(3)), side=96, multiple=8) == 4
    assert field_radius(nn.Sequential(same(3), nn.InstanceNorm2d(1)), side=96, multiple=8) == math.inf


@pytest.mark.parametrize('tile,overlap', [(32, 32), (32, 5), (32, -2), (40, 20)])
def test_tiles_off_the_grid_are_refused(tile, overlap):
    with pytest.raises(ValueError, match='multiple of'): tiled(stack(2), torch.zeros(1, 64, 64), tile, overlap, 32)


def test_a_slide_from_disk_takes_little_memory(tmp_path):
    "4096 x 4096 from a memory map: the whole picture at once would take over 1 GB in this network"
    code = f'''
import numpy as np, resource, torch
from medlearn.foundations.tiles import tiled
from torch import nn
torch.set_num_threads(1)
slide = np.lib.format.open_memmap(r"{tmp_path/'slide.npy'}", "w+", np.uint8, (1, 4096, 4096))
net, seen = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval(), []
def f(x):
    seen.append(tuple(x.shape))
    return net(x.float()).argmax(1, keepdim=True).byte()
f(torch.zeros(1, 1, 544, 544))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answer = tiled(f, slide, 544, 32)
print(answer.shape, answer.dtype, max(s[2] for s in seen), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024)
'''
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shape, largest, extra = done.stdout.split()
    assert ' '.join(shape) == '(1, 4096, 4096) uint8' and int(largest) <= 544 and int(extra) < 150, done.stdout


def test_a_large_receptive_field_is_found_by_a_larger_picture():
    same = lambda k: nn.Conv2d(1, 1, k, padding=k//2)
    far = nn.Sequential(*[same(31) for _ in range(4)])
    assert field_radius(far, multiple=8, side=512) == 60 and field_radius(far, multiple=8, side=64) == math.inf


def test_the_receptive_field_of_a_volume():
    assert field_radius(nn.Conv3d(1, 1, 5, padding=2), multiple=2, axes=3, side=32) == 2


def test_a_tile_with_holes_is_named():
    x = torch.zeros(1, 64, 64)
    x[0, 50, 50] = math.nan
    with pytest.raises(DataError, match=r'begins at \[32, 32\]'): tiled(stack(2), x, 32, 0, 2)
