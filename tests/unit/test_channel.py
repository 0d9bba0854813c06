"""The control channel: what goes in comes out, and nothing hangs."""

import contextlib
import random
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdiff_core.errors import (
    AsyncDiffError,
    ChannelClosedError,
    ChannelDataError,
    ChannelTimeoutError,
)
from asyncdiff_core.wire import strides
from asyncdiff_core.wire.channel import Channel, encode_frame
from asyncdiff_core.wire.plain import Reader, Writer

HANG = 30.0  # a bound for what should take no time at all

DTYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
)


@contextlib.contextmanager
def channel_pair() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    try:
        yield ours, other
    finally:
        ours.close()
        other.close()


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    with channel_pair() as channels:
        yield channels


@pytest.fixture
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the bare socket of the other end."""
    ours, theirs = Channel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def in_thread() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def there(pair: tuple[Channel, Channel], message: Any) -> Any:
    pair[0].send(message, HANG)
    return pair[1].receive(HANG)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    assert bits(a) == bits(b)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Any bits, NaN and denormal numbers among them."""
    generator = torch.Generator().manual_seed(3)
    high = 2 if dtype == torch.bool else 256
    flat = torch.randint(
        high, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, generator=generator
    )
    return flat.view(dtype)


# Tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_arrives_bit_by_bit(pair: Any, dtype: torch.dtype) -> None:
    whole = random_bits((3, 4, 5), dtype)
    tensors = [whole, whole[1, 2, 3], whole[:0], whole.transpose(0, 2), whole[:, ::2], whole[2:]]
    for sent, received in zip(tensors, there(pair, tensors), strict=True):
        assert_same(sent, received)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.tensor(True),
        torch.empty(0),
        torch.empty(2, 0, 3),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(1, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d),
        torch.rand(4, 1).expand(4, 6),
        torch.rand(()).expand(3, 3),
        torch.rand(6, 5).t(),
        torch.rand(3, 4, 5).permute(2, 0, 1),
        torch.rand(8, 9)[::2, 1::3],
        torch.rand(6)[::3][:1],
        torch.rand(10).flip(0),
        torch.rand(2, 3, 1).transpose(0, 2),
        torch.rand(3, 4).unfold(1, 2, 1),
        torch.rand(4, requires_grad=True),
        torch.nn.Parameter(torch.rand(2, 2)),
        torch.rand(4, dtype=torch.complex64).conj(),
        torch.rand(4, dtype=torch.complex64).conj().imag,
        torch.rand(4)._neg_view(),
    ],
    ids=[
        *("0-dim", "0-dim bool", "empty", "empty 3-dim", "channels last", "batch of one"),
        *("channels last 3d", "expanded", "expanded 0-dim", "transposed", "permuted", "strided"),
        *("one of many", "flipped", "a dimension of one", "overlapping", "with grad", "parameter"),
        *("conj", "neg strided", "neg"),
    ],
)
def test_every_kind_of_tensor_arrives(pair: Any, tensor: torch.Tensor) -> None:
    received = there(pair, tensor)
    assert received.dtype == tensor.dtype and received.shape == tensor.shape
    assert torch.equal(received, tensor)
    assert not received.requires_grad and type(received) is torch.Tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d),
        torch.rand(6, 5).t(),
        torch.rand(3, 4, 5).permute(2, 0, 1),
        torch.rand(3, 4),
        torch.rand(2, 261)[:, :256].view(2, 16, 16),
        torch.rand(1, 3, 4).expand(2, 3, 4),
        torch.rand(4, 1, 6)[:, :, ::2].expand(4, 5, 3).permute(1, 2, 0),
        torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last)[:, 1:3],
        torch.rand(8, 5)[::2, ::2],
    ],
    ids=[
        *("channels last", "channels last 3d", "transposed", "permuted", "contiguous"),
        *("packed", "expanded", "expanded with gaps", "channels last with gaps", "strided"),
    ],
)
def test_strides_survive(pair: Any, tensor: torch.Tensor) -> None:
    assert there(pair, tensor).stride() == tensor.stride()


@pytest.mark.parametrize(
    "tensor",
    [torch.rand(2, 1).expand(2, 40), torch.rand(20)[:1].expand(20)],
    ids=["many of few", "one element"],
)
def test_what_repeats_itself_too_often_is_dense(pair: Any, tensor: torch.Tensor) -> None:
    assert there(pair, tensor).is_contiguous()
    assert torch.equal(there(pair, tensor), tensor)


@pytest.mark.parametrize(
    ("tensor", "stride"),
    [
        (torch.rand(40, 40)[:, 0], (2,)),
        (torch.rand(2, 261)[:, 256:].view(2, 1, 5), (10, 5, 1)),
        (torch.rand(9, 90, 90)[::3, ::30, ::30], (50, 10, 2)),
    ],
    ids=["column", "packed", "few of many"],
)
def test_wide_gaps_become_narrow(pair: Any, tensor: torch.Tensor, stride: tuple[int, ...]) -> None:
    assert there(pair, tensor).stride() == stride
    assert torch.equal(there(pair, tensor), tensor)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((4,), (10**12,)),
        ((10**12, 4), (0, 1)),
        ((4,), (-1,)),
        ((2, 2), (1, 1)),
        ((4, 1), (1,)),
        ((4,), (True,)),
        ((4.0,), (1,)),
        ((0,), (3,)),
        ((10**9,) * 40 + (4,), (0,) * 40 + (1,)),
    ],
)
def test_impossible_strides_are_refused(shape: Any, stride: Any) -> None:
    writer = Writer()
    writer.write_all(b"X", (0, torch.float32, shape, stride))
    with pytest.raises(ChannelDataError):
        Reader(bytes(writer.data), [torch.zeros(16, dtype=torch.uint8)]).read_whole()


def test_inference_tensors_travel_too(pair: Any) -> None:
    with torch.inference_mode():
        tensor = torch.rand(3, 4).t()
        received = there(pair, {"x": tensor})
        assert torch.equal(received["x"], tensor)


def test_what_arrives_is_writable_and_shares_nothing(pair: Any) -> None:
    tensor = torch.zeros(4)
    received = there(pair, [tensor, tensor.clone()])
    received[0].add_(1)
    assert torch.equal(tensor, torch.zeros(4)) and torch.equal(received[1], torch.zeros(4))


def test_a_tensor_that_is_in_a_frame_twice_crosses_once(pair: Any) -> None:
    """And is one tensor where it arrives, as where it came from."""
    tensor = torch.rand(100, 60)
    value = {"a": tensor, "b": [tensor, tensor.T, tensor[:50], torch.empty(0), tensor.clone()]}
    received = there(pair, value)
    for sent, came in zip([value["a"], *value["b"]], [received["a"], *received["b"]], strict=True):
        assert_same(sent, came)
    received["a"].zero_()
    assert not received["b"][0].any() and received["b"][-1].any()
    once, twice = (sum(len(part) for part in encode_frame(v)) for v in ([tensor], [tensor, tensor]))
    assert once < twice < once + 100


def test_a_tensor_that_takes_the_place_of_another_one_is_not_that(pair: Any) -> None:
    """What is written, and would be gone before the frame is."""
    writer = Writer()
    for number in range(60):
        writer.write(torch.full((40, 60), float(number))[:, ::2])
    reader = Reader(writer.data, [strides.flat_bytes(one) for one in writer.beside])
    assert [reader.read()[0, 0].item() for _ in range(60)] == [*range(60)]


def test_one_frame_can_go_to_many(pair: Any) -> None:
    message = {"x": torch.rand(5), "step": 3}
    frame = encode_frame(message)
    with channel_pair() as other:
        for sender, receiver in (pair, other):
            sender.send_frame(frame, HANG)
            received = receiver.receive(HANG)
            assert received["step"] == 3 and torch.equal(received["x"], message["x"])


# Plain data ----------------------------------------------------------------------------------

SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.complex_numbers()),
    *(st.text(), st.binary(), st.uuids()),
)
PLAIN = st.recursive(
    SCALARS.filter(lambda value: value == value),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers())
    ),
)


@given(message=PLAIN)
@settings(max_examples=60)
def test_plain_data_arrives(message: Any) -> None:
    with channel_pair() as pair:
        received = there(pair, message)
        assert received == message and type(received) is type(message)


def test_tensors_deep_in_plain_data(pair: Any) -> None:
    key = uuid.uuid4()
    message = {
        "options": {"uuids": [key], "sigmas": torch.rand(3), "nested": [({"t": torch.rand(2)},)]},
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "nothing": None,
    }
    received = there(pair, message)
    assert torch.equal(received["options"]["sigmas"], message["options"]["sigmas"])
    deep = received["options"]["nested"][0][0]["t"]
    assert torch.equal(deep, message["options"]["nested"][0][0]["t"])
    assert received["options"]["uuids"] == [key]
    for name in ("dtype", "device", "size", "nothing"):
        assert received[name] == message[name]


def test_frames_keep_their_order(pair: Any, in_thread: Any) -> None:
    def send_all() -> None:
        for i in range(50):
            pair[0].send((i, torch.full((i,), i)), HANG)

    sending = in_thread(send_all)
    for i in range(50):
        number, tensor = pair[1].receive(HANG)
        assert number == i and torch.equal(tensor, torch.full((i,), i))
    sending.result(HANG)


# Sizes beyond the socket's buffer --------------------------------------------------------------


def test_big_frames_both_ways_at_once(pair: Any, in_thread: Any) -> None:
    big = torch.randint(256, (3 << 20,), dtype=torch.uint8)
    message = {"a": big, "b": [big.view(1024, -1).t(), torch.tensor(1)], "text": "x" * (1 << 20)}
    sends = [in_thread(end.send, message, HANG) for end in pair for _ in range(2)]
    receives = [in_thread(lambda end=end: [end.receive(HANG) for _ in range(2)]) for end in pair]
    for send in sends:
        send.result(HANG)
    for receive in receives:
        for received in receive.result(HANG):
            assert torch.equal(received["a"], big)
            assert torch.equal(received["b"][0], message["b"][0])
            assert received["text"] == message["text"]


def test_frames_of_several_threads_do_not_mix(pair: Any, in_thread: Any) -> None:
    sends = [
        in_thread(pair[0].send, (i, torch.full((100_000,), i, dtype=torch.int32)), HANG)
        for i in range(8)
    ]
    seen = set()
    for _ in range(8):
        number, tensor = pair[1].receive(HANG)
        assert torch.equal(tensor, torch.full((100_000,), number, dtype=torch.int32))
        seen.add(number)
    assert seen == set(range(8))
    for send in sends:
        send.result(HANG)


def test_a_frame_that_arrives_byte_by_byte(raw: Any, in_thread: Any) -> None:
    channel, sock = raw
    data = b"".join(bytes(part) for part in encode_frame({"x": torch.arange(5)}))
    received = in_thread(channel.receive, HANG)
    for i in range(len(data)):
        sock.sendall(data[i : i + 1])
    assert torch.equal(received.result(HANG)["x"], torch.arange(5))


# Time-outs -----------------------------------------------------------------------------------


def test_receive_gives_up_when_nothing_comes(pair: Any) -> None:
    start = time.monotonic()
    with pytest.raises(ChannelTimeoutError):
        pair[0].receive(0.1)
    assert 0.09 < time.monotonic() - start < HANG


def test_receive_gives_up_on_half_a_frame(raw: Any) -> None:
    channel, sock = raw
    data = b"".join(bytes(part) for part in encode_frame({"x": torch.arange(50)}))
    sock.sendall(data[:-10])
    with pytest.raises(ChannelTimeoutError):
        channel.receive(0.1)


def test_the_deadline_is_one_for_the_whole_frame(raw: Any, in_thread: Any) -> None:
    """A byte now and then does not keep the receiver waiting for ever."""
    channel, sock = raw
    data = b"".join(bytes(part) for part in encode_frame(b"x" * 10_000))
    over = threading.Event()

    def drip() -> None:
        for i in range(len(data)):
            if over.wait(0.02):
                return
            sock.sendall(data[i : i + 1])

    dripping = in_thread(drip)
    try:
        with pytest.raises(ChannelTimeoutError):
            channel.receive(0.3)
    finally:
        over.set()
    dripping.result(HANG)


def test_send_gives_up_when_nobody_reads(pair: Any) -> None:
    with pytest.raises(ChannelTimeoutError):
        pair[0].send(torch.zeros(1 << 22), 0.1)


def test_a_message_after_a_receive_that_timed_out(pair: Any) -> None:
    with pytest.raises(ChannelTimeoutError):
        pair[1].receive(0.05)
    assert there(pair, "later") == "later"


def test_the_timeout_of_a_send_is_not_that_of_a_receive(pair: Any, in_thread: Any) -> None:
    waiting = in_thread(pair[0].receive)
    for i in range(20):
        pair[0].send(i, 0.01 + HANG * (i % 2))
        assert pair[1].receive(HANG) == i
    assert not waiting.done()
    pair[1].send("at last", HANG)
    assert waiting.result(HANG) == "at last"


# The other end is gone -------------------------------------------------------------------------


def test_a_closed_peer(pair: Any) -> None:
    pair[1].close()
    with pytest.raises(ChannelClosedError):
        pair[0].receive(HANG)
    with pytest.raises(ChannelClosedError):  # noqa: PT012 - the first few may be buffered
        for _ in range(100):
            pair[0].send(torch.zeros(1 << 20), HANG)


def test_what_was_sent_before_the_end_still_arrives(pair: Any) -> None:
    pair[0].send("last words", HANG)
    pair[0].close()
    assert pair[1].receive(HANG) == "last words"
    with pytest.raises(ChannelClosedError):
        pair[1].receive(HANG)


def test_the_peer_ends_in_the_middle_of_a_frame(raw: Any) -> None:
    channel, sock = raw
    data = b"".join(bytes(part) for part in encode_frame({"x": torch.arange(50)}))
    sock.sendall(data[: len(data) // 2])
    sock.close()
    with pytest.raises(ChannelClosedError):
        channel.receive(HANG)


def test_the_end_of_the_peer_wakes_who_waits_for_it(pair: Any, in_thread: Any) -> None:
    waiting = in_thread(pair[0].receive)
    sending = in_thread(pair[0].send, torch.zeros(1 << 22))
    pair[1].close()
    for blocked in (waiting, sending):
        assert isinstance(blocked.exception(HANG), ChannelClosedError)


def test_close_wakes_our_own_receive(pair: Any, in_thread: Any) -> None:
    waiting = in_thread(pair[0].receive)
    with pytest.raises(TimeoutError):
        waiting.result(0.1)  # it does wait
    pair[0].close()
    assert isinstance(waiting.exception(HANG), ChannelClosedError)


def test_a_channel_that_is_closed_says_so(pair: Any) -> None:
    pair[0].close()
    pair[0].close()
    with pytest.raises(ChannelClosedError):
        pair[0].send("x", HANG)
    with pytest.raises(ChannelClosedError):
        pair[0].receive(HANG)


# Garbage -------------------------------------------------------------------------------------


@given(garbage=st.binary(min_size=16, max_size=200).filter(lambda b: not b.startswith(b"ADC2")))
@settings(max_examples=40)
def test_bytes_that_are_no_frame_are_an_error_at_once(garbage: bytes) -> None:
    ours, theirs = Channel.pair()
    with contextlib.closing(ours), theirs:
        theirs.sendall(garbage)  # and stays open: no end of stream helps
        with pytest.raises(AsyncDiffError, match="no frame"):
            ours.receive(HANG)


@pytest.mark.parametrize("seed", range(5))
def test_a_frame_with_a_flipped_pickle_is_an_error(raw: Any, seed: int) -> None:
    channel, sock = raw
    rng = random.Random(seed)
    pickled = bytes(rng.randrange(256) for _ in range(64))
    sock.sendall(struct.pack("<4sIQ", b"ADC2", 0, len(pickled)) + pickled)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever pickle makes of it
        channel.receive(HANG)
    assert not isinstance(caught.value, ChannelTimeoutError)


@pytest.mark.parametrize("header", [(0, 2**64 - 1), (0, 2**62), (2**32 - 1, 10)])
def test_a_frame_with_absurd_sizes_is_an_error(raw: Any, header: tuple[int, int]) -> None:
    channel, sock = raw
    sock.sendall(struct.pack("<4sIQ", b"ADC2", *header) + b"\xff" * 100)
    with pytest.raises((AsyncDiffError, MemoryError, OverflowError)):
        channel.receive(0.2)


def test_a_tensor_larger_than_any_memory_is_an_error(raw: Any) -> None:
    channel, sock = raw
    pickled = b"N"
    head = struct.pack("<4sIQQ", b"ADC2", 1, len(pickled), 2**60)
    sock.sendall(head + pickled)
    with pytest.raises((AsyncDiffError, MemoryError, RuntimeError)):
        channel.receive(0.2)


def test_an_object_that_cannot_be_pickled_is_refused_before_anything_is_sent(pair: Any) -> None:
    with pytest.raises(TypeError):
        pair[0].send({"x": torch.zeros(3), "lock": threading.Lock()}, HANG)
    assert there(pair, "still in order") == "still in order"
