"""A GPU's rules without a GPU: the arithmetic is the CPU's, but tensors on the pretended device obey what CUDA demands.

Tensors of two devices do not mix, NumPy cannot read what lies there, a generator belongs to its device, integers are not convolved.
Where a tensor lies is a mark on its storage, so that views share it. What a GPU computes, how fast and in how much memory, this cannot show.
"""
import re,torch
from contextlib import ExitStack,contextmanager
from unittest.mock import patch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter,tree_map

GPU,aten = torch.device('cuda', 0),torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._local_scalar_dense.default} # may cross from one device to another
JOINS = {aten.cat.default, aten.stack.default} # take no number from the CPU, as others do
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
           aten._unsafe_index.Tensor, aten._unsafe_index_put.default} # take indices from the CPU
FLOATS = re.compile(r'^(mm|addmm|bmm|baddbmm|mv|dot)$|convolution|_pool|linear[123]d')

def there(t):
    "Does this tensor lie on the pretended device?"
    try: return getattr(t.untyped_storage(), 'pretended', False)
    except (NotImplementedError, RuntimeError, ValueError): return False # sparse, or not initialised yet

def put(t, on):
    "Mark where a tensor lies"
    t.untyped_storage().pretended = on
    return t

def move(t, on): return t if there(t) == on else put(t.clone(), on)
def meant(device): return device is not None and (type(device) is int or torch.device(device).type == 'cuda')
def tensors(x): return [t for t in tree_iter(x) if isinstance(t, Tensor) and t.layout == torch.strided]

class Operations(TorchDispatchMode):
    "May these tensors be computed with? The result lies where they do"
    def __init__(self):
        super().__init__()
        self.inside,self.count = [False],{True: 0, False: 0}
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given,kwargs = tensors((args, kwargs)),kwargs or {}
        on = self.side(func, args, given) if given else self.inside[-1]
        res = func(*args, **kwargs)
        if func is not aten.copy_.default:
            for t in tensors(res): put(t, on)
        return res
    def side(self, func, args, given):
        "Where the result will lie; an error where a GPU would raise one"
        if func in COPIES: return there(args[0])
        if func in INDEXED:
            if not there(args[0]) and any(map(there, tensors(args[1]))):
                raise RuntimeError(f'indices should be either on cpu or on the same device as the indexed tensor (cpu): {func}')
            given = [args[0], *tensors(args[2:3])]
        sides = {there(t) for t in given if t.ndim or func in JOINS}
        if func._schema.name.endswith('_') and given and not there(given[0]): sides |= {there(t) for t in given}
        if len(sides) == 2:
            where = ', '.join(f'{tuple(t.shape)} on {"cuda:0" if there(t) else "cpu"}' for t in given)
            raise RuntimeError(f'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! {func}: {where}')
        on = sides.pop() if sides else any(map(there, given))
        name = func._schema.name.split('::')[1]
        if on and FLOATS.search(name) and not (given[0].is_floating_point() or given[0].is_complex()):
            raise NotImplementedError(f'"{name}" not implemented for {given[0].dtype} on cuda')
        self.count[on] += 1
        return on

class Names(TorchFunctionMode):
    "The pretended device, wherever Python names one: `.to`, `.cuda`, `device=`, `.device`"
    def __init__(self, operations):
        super().__init__()
        self.inside = operations.inside
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        self.inside.append(any(map(there, tensors((args, kwargs)))))
        try: return self.call(func, getattr(func, '__name__', ''), args, kwargs)
        finally: self.inside.pop()
    def call(self, func, name, args, kwargs):
        t = args[0] if args else None
        if name == '__get__':
            what = getattr(getattr(func, '__self__', None), '__name__', '')
            if what == 'device' and there(t): return GPU
            if what in ('is_cuda', 'is_cpu'): return there(t) == (what == 'is_cuda')
            return func(*args, **kwargs)
        if func is Tensor.to: return self.to(*args, **kwargs)
        if func in (Tensor.cuda, Tensor.cpu): return move(t, func is Tensor.cuda)
        if func is Tensor.pin_memory: return t
        if func in (Tensor.numpy, Tensor.__array__) and there(t):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        if func is Tensor.__deepcopy__: return put(func(*args, **kwargs), there(t))
        if 'device' not in kwargs or name == '_parse_to': return func(*args, **kwargs)
        on = meant(device := kwargs.pop('device'))
        if device is None: return func(*args, **kwargs)
        if on and kwargs.get('generator') is not None: raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        res = func(*args, **kwargs)
        return move(res, on) if func in (torch.as_tensor, torch.asarray) else put(res, on) if isinstance(res, Tensor) else res
    def to(self, t, *args, **kwargs):
        device,dtype = kwargs.pop('device', None),kwargs.pop('dtype', None)
        for a in args:
            if isinstance(a, Tensor): device,dtype = GPU if there(a) else 'cpu',a.dtype
            elif isinstance(a, torch.dtype): dtype = a
            elif a is not None and type(a) is not bool: device = a
        res = t.to(dtype or t.dtype, **{k: v for k,v in kwargs.items() if k in ('memory_format', 'copy')})
        return res if device is None else move(res, meant(device))

@contextmanager
def pretended_gpu():
    "Inside, PyTorch and fastai find a CUDA device; gives the count of operations there (True) and on the CPU (False)"
    import torch._dynamo.utils,torch.utils._triton # torchvision asks them whether it may compile for the GPU
    operations,load = Operations(),torch.load
    def load_there(*args, map_location=None, **kwargs):
        on = isinstance(map_location, (int, str, torch.device)) and meant(map_location)
        res = load(*args, map_location='cpu' if on else map_location, **kwargs)
        return tree_map(lambda t: put(t, True) if isinstance(t, Tensor) else t, res) if on else res
    answers = dict(is_available=True, device_count=1, current_device=0, get_device_name='pretended', get_device_capability=(8, 0), synchronize=None,
                   empty_cache=None, memory_allocated=0, max_memory_allocated=0, reset_peak_memory_stats=None, mem_get_info=(8 << 30, 16 << 30),
                   get_rng_state_all=[], set_rng_state_all=None, manual_seed=None, manual_seed_all=None, is_bf16_supported=True)
    with ExitStack() as stack:
        for name,value in answers.items(): stack.enter_context(patch.object(torch.cuda, name, lambda *args, value=value, **kwargs: value))
        for module in (torch._dynamo.utils, torch.utils._triton): stack.enter_context(patch.object(module, 'has_triton', lambda *args, **kwargs: False))
        stack.enter_context(patch.object(torch.nn.RNNBase, 'flatten_parameters', lambda self: None))
        stack.enter_context(patch.object(torch.optim.Optimizer, '_accelerator_graph_capture_health_check', lambda self: None))
        stack.enter_context(patch.object(torch, 'load', load_there))
        stack.enter_context(operations)
        stack.enter_context(Names(operations))
        yield operations.count
