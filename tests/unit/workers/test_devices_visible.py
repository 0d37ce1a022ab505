"""CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES, as set before a worker starts."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.errors import InvalidSetting
from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.in_memory import MemoryDevices
from workers.hardware.stock import take_stock
from workers.hardware.visible import restrict

A = Device(uuid="GPU-aaaa1111-0000-4000-8000-000000000000", index=0)
B = Device(uuid="GPU-aaaa2222-0000-4000-8000-000000000000", index=1)
C = Device(uuid="GPU-cccc3333-0000-4000-8000-000000000000", index=2)
PARENT = "GPU-dddd4444-0000-4000-8000-000000000000"
M0 = Device(uuid="MIG-eeee0000-0000-5000-8000-000000000000", index=3, mig_index=0, parent_uuid=PARENT)
M1 = Device(uuid="MIG-eeee1111-0000-5000-8000-000000000000", index=3, mig_index=1, parent_uuid=PARENT)
ALL = (A, B, C, M0, M1)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", ALL),
        ("ALL", ALL),
        ("", ()),
        (" ", ()),
        ("none", ()),
        ("void", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        (C.uuid, (C,)),
        (f"{C.uuid},{A.uuid}", (C, A)),
        (f" {C.uuid} , {A.uuid} ", (C, A)),
        (f"{A.uuid},{A.uuid}", (A,)),
        ("GPU-c", (C,)),
        ("gpu-CCCC", (C,)),
        ("GPU-aaaa1", (A,)),
        ("2", (C,)),
        ("2,0", (C, A)),
        ("2,-1,0", (C,)),
        (M1.uuid, (M1,)),
        ("MIG-eeee1", (M1,)),
        ("3:1", (M1,)),
        ("3", (M0, M1)),
        (PARENT, (M0, M1)),
        ("GPU-dddd", (M0, M1)),
    ],
)
def test_what_is_named_is_offered_in_that_order(variable: str, value: str, expected: tuple[Device, ...]) -> None:
    assert restrict(ALL, {variable: value}).devices == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("9", "names no device"),
        ("GPU-ffff", "names no device"),
        ("aaaa1111", "names no device"),
        ("GPU-aaaa", "fits 2 devices"),
        ("MIG-", "fits 2 devices"),
        ("0-2", "names no device"),
        ("3:7", "names no device"),
        ("0,,1", "names no device"),
        ("0,all", "names no device"),
    ],
)
def test_what_names_nothing_is_a_mistake_that_tells_what_is_there(value: str, said: str) -> None:
    with pytest.raises(InvalidSetting, match=said) as caught:
        restrict(ALL, {"CUDA_VISIBLE_DEVICES": value})
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)
    assert f"3:1 = {M1.uuid}" in str(caught.value)


def test_without_a_variable_all_are_offered() -> None:
    assert restrict(ALL, {}).devices == ALL


def test_of_two_variables_what_both_allow_is_offered_in_the_order_of_cuda() -> None:
    both = {"CUDA_VISIBLE_DEVICES": f"{C.uuid},{A.uuid},{B.uuid}", "NVIDIA_VISIBLE_DEVICES": f"{A.uuid},{C.uuid}"}
    assert restrict(ALL, both).devices == (C, A)
    assert restrict(ALL, {**both, "NVIDIA_VISIBLE_DEVICES": "void"}).devices == ()


def test_an_index_is_taken_with_a_warning_and_a_uuid_is_not() -> None:
    (warning,) = restrict(ALL, {"CUDA_VISIBLE_DEVICES": "1"}).warnings
    assert "order" in warning
    assert B.uuid in warning
    assert restrict(ALL, {"CUDA_VISIBLE_DEVICES": B.uuid}).warnings == ()


def test_what_stands_behind_the_end_of_a_list_is_left_out_with_a_warning() -> None:
    (warning,) = restrict(ALL, {"CUDA_VISIBLE_DEVICES": f"{A.uuid},-1,{B.uuid}"}).warnings
    assert "-1" in warning


@given(st.lists(st.sampled_from(ALL), unique_by=lambda device: device.uuid, min_size=1))
def test_uuids_give_back_what_they_were_taken_from(chosen: list[Device]) -> None:
    value = ",".join(device.uuid for device in chosen)
    assert list(restrict(ALL, {"CUDA_VISIBLE_DEVICES": value}).devices) == chosen


@given(st.text(max_size=20), st.sampled_from(["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"]))
def test_any_text_offers_what_is_there_or_is_a_mistake(value: str, variable: str) -> None:
    try:
        offered = restrict(ALL, {variable: value}).devices
    except InvalidSetting:
        return
    assert set(map(id, offered)) <= set(map(id, ALL))


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.message, str(record.__dict__.get("detail", ""))) for record in caplog.records]


@pytest.fixture
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="workers.hardware.stock")


@pytest.mark.usefixtures("_logged")
def test_a_cpu_node_says_so_once_and_why(caplog: pytest.LogCaptureFixture) -> None:
    assert take_stock(MemoryDevices(), {"CUDA_VISIBLE_DEVICES": "0"}).devices == ()
    assert said(caplog) == [("devices.none", "no GPU was said to be there")]


@pytest.mark.usefixtures("_logged")
def test_a_node_whose_gpus_are_hidden_says_so_once_and_by_what(caplog: pytest.LogCaptureFixture) -> None:
    assert take_stock(MemoryDevices(A, B), {"NVIDIA_VISIBLE_DEVICES": "void"}).devices == ()
    ((event, detail),) = said(caplog)
    assert event == "devices.none"
    assert "NVIDIA_VISIBLE_DEVICES=void lets none of 2" in detail


@pytest.mark.usefixtures("_logged")
def test_a_driver_that_does_not_answer_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    devices = MemoryDevices()
    devices.inventory = Inventory(presence=Presence.UNKNOWN, detail="NVML hangs")
    assert take_stock(devices, {"CUDA_VISIBLE_DEVICES": "0"}).inventory.presence is Presence.UNKNOWN
    assert said(caplog) == [("devices.unknown", "NVML hangs")]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.usefixtures("_logged")
def test_a_gpu_node_tells_what_it_offers(caplog: pytest.LogCaptureFixture) -> None:
    stock = take_stock(MemoryDevices(A, B, C), {"CUDA_VISIBLE_DEVICES": f"{C.uuid},{A.uuid}"})
    assert stock.devices == (C, A)
    (record,) = caplog.records
    assert (record.message, record.__dict__["devices"]) == ("devices.found", [C.uuid, A.uuid])


@pytest.mark.usefixtures("_logged")
def test_a_node_with_nothing_but_a_split_gpu_without_instances_says_so(caplog: pytest.LogCaptureFixture) -> None:
    devices = MemoryDevices()
    devices.inventory = Inventory(presence=Presence.PRESENT, problems=("GPU 0 is in MIG mode and has no instances",))
    assert take_stock(devices, {}).devices == ()
    assert said(caplog) == [("devices.none", "GPU 0 is in MIG mode and has no instances")]
