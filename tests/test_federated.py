"Real processes and real sockets: what arrives is what was trained, and what is refused is named"
import json, os, pickle, socket, subprocess, sys, threading, time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import numpy as np, pytest

from medlearn.foundations.federation import by_hospital, federated_rounds, first_weights, weighted_average
from medlearn.kit.cards import DataError
from medlearn.trust.federated import (as_floats, checked_update, Coordinator, fixed_point, flower_average, hospital_processes, mask_of, masked_update, MESSAGE_BYTES,
                                      packed_update, pair_secrets, PRIME, unmasked_sum, unpacked_update)

rng = np.random.default_rng(0)
x, y = rng.normal(size=(60, 9)).astype(np.float32), (rng.random(60) < .4).astype(np.float32)
houses = by_hospital(x, y, np.repeat(['north', 'south'], [40, 20]))
net = first_weights(9, 4)
plan = dict(steps=3, lr=.1, bs=8, seed=5)


def test_messages():
    info, back = unpacked_update(packed_update(dict(round=3), net))
    assert info == dict(round=3) and all((back[k] == v).all() and back[k].dtype == v.dtype for k, v in net.items())
    assert unpacked_update(packed_update(dict(a=1))) == (dict(a=1), {})
    good = packed_update(dict(round=0, cases=7), net)
    assert checked_update(good, net, 'north')[:2] == (0, 7)
    for n in range(len(good)): # cut anywhere: refused, and nothing but a DataError
        with pytest.raises(DataError, match="hospital 'north'"): checked_update(good[:n], net, 'north')
    for i in range(0, len(good), 7): # one byte changed: read or refused, never anything else
        bent = bytearray(good)
        bent[i] ^= 0x55
        try: checked_update(bytes(bent), net, 'north')
        except DataError as e: assert 'north' in str(e)


@pytest.mark.parametrize('data, why', [
    (b'', 'no message'), (pickle.dumps(dict(round=0)), 'no message'), (b'\x00\x00\x00\x02[]', 'is a list'), (b'\x00\x00\x00\x02{x', 'no JSON'),
    (b'\xff\xff\xff\xff' + bytes(50), 'no message'), (bytes(MESSAGE_BYTES + 1), 'at most are read'), (b'\x00\x00\x0f\xa0' + b'['*4000, 'no JSON'),
    (packed_update(dict(round=0, cases=0), net), 'cases is 0'), (packed_update(dict(round=0, cases=True), net), 'cases is True'),
    (packed_update(dict(round=-1, cases=1), net), 'round is -1'), (packed_update(dict(cases=1), net), 'round is None'), (packed_update(dict(round=0, cases=10**9), net), 'cases is 1000000000'),
    (packed_update(dict(round=0, cases=1)), 'tensors'), (packed_update(dict(round=0, cases=1), first_weights(9, 5)), 'has the shape')])
def test_what_is_no_update_is_refused_by_name(data, why):
    with pytest.raises(DataError, match=f"hospital 'north': .*{why}"): checked_update(data, net, 'north')


def test_processes_train_what_one_process_trains_and_do_not_outlive_it():
    key = os.urandom(16)
    server = Coordinator(net, houses, key)
    try:
        with hospital_processes(server.address, key, houses, drops=dict(south=2)) as programs:
            assert server.wait_for(2) == ['north', 'south']
            for r in range(2): server.round(r, **plan)
            want = federated_rounds(net, houses, 2, 3, .1, 8, 5)
            assert all((server.net[k] == want[k]).all() for k in net) and not server.log
            server.round(2, **plan) # one leaves: the round ends without waiting for the deadline
            assert [e['hospital'] for e in server.log] == ['south'] and 'gone' in server.log[0]['what']
            assert all((server.net[k] != want[k]).any() for k in ('w1', 'w2'))
            raise KeyboardInterrupt
    except KeyboardInterrupt: pass
    finally: server.close()
    assert all(p.poll() is not None for p in programs)


def test_hospital_ends_when_its_parent_does():
    quiet = socket.create_server(('127.0.0.1', 0)) # takes the connection, and never answers
    code = 'from medlearn.trust.federated import hospital_process; hospital_process()'
    from safetensors.numpy import save_file
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        save_file(dict(x=x, y=y), f'{d}/0.safetensors')
        p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, text=True)
        try:
            p.stdin.write(json.dumps(dict(address=quiet.getsockname(), key='00', name='a', number=0, file=f'{d}/0.safetensors', drops=None, slow=None, seconds=0)) + '\n')
            p.stdin.close()
            assert p.wait(60) == 3
        finally:
            p.kill()
            p.wait()
            quiet.close()


class Fake:
    "A hospital in a thread of this process"
    def __init__(self, server, key, name, reply):
        self.server, self.key, self.name, self.reply = server, key, name, reply
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def run(self):
        try:
            with Client(self.server.address, authkey=self.key) as conn:
                conn.send_bytes(packed_update(dict(hospital=self.name)))
                while True:
                    info, got = unpacked_update(conn.recv_bytes(MESSAGE_BYTES))
                    self.reply(conn, info, got)
        except (OSError, EOFError, AuthenticationError): pass


def honest(conn, info, got): conn.send_bytes(packed_update(dict(round=info['round'], cases=10), got))


def test_slow_strange_silent_and_hostile():
    key = b'k'*16
    def late(conn, info, got):
        if info['round'] == 0: time.sleep(4)
        honest(conn, info, got)
    def long(conn, info, got): conn.send_bytes(bytes(MESSAGE_BYTES + 1))
    def half(conn, info, got):
        os.write(conn.fileno(), (1000).to_bytes(4, 'big') + b'x')
        conn.close()
    def nan(conn, info, got): conn.send_bytes(packed_update(dict(round=info['round'], cases=10), {k: v*np.float32('nan') for k, v in got.items()}))
    server = Coordinator(net, ['good', 'late', 'long', 'half', 'nan'], key)
    silent = socket.create_connection(server.address) # connects, says nothing, and holds up nobody
    try:
        for n, reply in dict(good=honest, late=late, long=long, half=half, nan=nan).items(): Fake(server, key, n, reply)
        server.wait_for(5)
        for k, n in ((b'wrong', 'good'), (key, 'good'), (key, 'unknown')): Fake(server, k, n, honest).thread.join(5)
        server.round(0, deadline=2.5, steps=1)
        said = {e['hospital']: e['what'] for e in server.log if e['round'] == 0}
        assert said.keys() == {'late', 'long', 'half', 'nan'}, server.log
        assert 'no answer within' in said['late'] and 'too long' in said['long'] and 'cut off' in said['half'] + said['long'] and 'NaN' in said['nan']
        others = [e['what'] for e in server.log if e['round'] is None]
        assert any('wrong key' in w for w in others) and any('here already' in w for w in others) and any("'unknown' is not among" in w for w in others)
        server.round(1, deadline=30, steps=1) # the late answer to round 0 is not taken for one to round 1
        assert any(e['round'] == 1 and e['hospital'] == 'late' and 'answer to round 0' in e['what'] for e in server.log)
        assert all(np.allclose(server.net[k], net[k]) for k in net)
        before = server.net
        server.round(2, deadline=30, least=9, steps=1)
        assert server.net is before and 'the old weights stay' in server.log[-1]['what']
    finally:
        silent.close()
        server.close()
    with pytest.raises(OSError): socket.create_connection(server.address, 1)


def test_waiting_has_an_end():
    server = Coordinator(net, ['a'], b'k')
    try:
        with pytest.raises(DataError, match='0 of 1 hospitals came within 0.1 s'): server.wait_for(1, .1)
    finally: server.close()


def test_prime_is_a_safe_prime():
    assert PRIME.bit_length() == 2048 and all(pow(b, p - 1, p) == 1 for p in (PRIME, PRIME//2) for b in (2, 3, 5))


def test_masks_cancel_exactly():
    names = list('abcd')
    secrets = pair_secrets({n: 10**60 + 7*i for i, n in enumerate(names)})
    u = {n: rng.normal(size=50)*100 for n in names}
    whole = {n: fixed_point(v, 4) for n, v in u.items()}
    masked = {n: masked_update(n, v, secrets, 3) for n, v in whole.items()}
    np.testing.assert_allclose(as_floats(unmasked_sum(masked, 3, {})), sum(u.values()), atol=4*2.**-32)
    assert (unmasked_sum(masked, 3, {}) == sum(whole.values())).all() and (as_floats(fixed_point(-np.arange(3.), 1)) == -np.arange(3.)).all()
    rest = {n: masked[n] for n in 'acd'}
    known = {p: s for p, s in secrets.items() if 'b' in p}
    assert (unmasked_sum(rest, 3, known) == whole['a'] + whole['c'] + whole['d']).all() and (unmasked_sum(rest, 3, {}) != whole['a'] + whole['c'] + whole['d']).all()
    with pytest.raises(DataError, match='not to be revealed'): unmasked_sum(rest, 3, secrets)
    assert len(secrets) == 6 and (mask_of(secrets['a', 'b'], 0, 9) != mask_of(secrets['a', 'b'], 1, 9)).all()
    for bad in (np.array([1e10]), np.array([np.nan]), np.array([-np.inf])):
        with pytest.raises(DataError, match='an update of'): fixed_point(bad, 4)


def test_flower_agrees_or_says_where_it_belongs():
    nets = [first_weights(9, 4, seed=s) for s in (0, 1)]
    try: import flwr # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match='environment of its own'): flower_average(nets, [1, 3])
        pytest.skip('Flower is not installed in this environment')
    ours, theirs = weighted_average(nets, [1, 3]), flower_average(nets, [1, 3])
    for k in net: np.testing.assert_allclose(theirs[k], ours[k], atol=1e-6)
