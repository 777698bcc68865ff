"""Price tables: GPU names become the right device, one price a thing, and bad rows are refused with their lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import catalog
from planner.errors import DescriptionError, OptionError
from planner.readers.gpu_names import devices_meant, family_of, find_device
from planner.readers.price_tables import PriceFilter, PriceTable, read_price_table

HEAD = "provider,region,instance_type,gpu,gpus_per_instance,gpu_mem_gib,market,usd_per_hour,usd_per_gpu_hour,as_of\n"
P5 = "aws,us-east-1,p5.48xlarge,h100,8,80,on_demand,55.04,6.88,2026-07-20\n"

Read = Callable[..., PriceTable]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def of_text(text: str, only: PriceFilter | None = None, **how: bool) -> PriceTable:
        path = tmp_path / "prices.csv"
        path.write_text(text, encoding="utf-8")
        return read_price_table(path, only, **how)

    return of_text


@pytest.mark.parametrize(
    ("gpu", "memory_gb", "instance", "device"),
    [
        ("a100", 40, "", "a100_sxm_40gb"),
        ("a100", 80, "", "a100_sxm"),
        ("A100-80GB", None, "", "a100_sxm"),
        ("NVIDIA A100 40GB", None, "", "a100_sxm_40gb"),
        ("a100_sxm", None, "", "a100_sxm"),
        ("a100-80gb", 80, "Standard_NC48ads_A100_v4", "a100_pcie"),
        ("a100", 80, "lab_1x_a100_pcie", "a100_pcie"),
        ("a100", 40, "p4d.24xlarge", "a100_sxm_40gb"),
        ("h100", 80, "", "h100_sxm"),
        ("h100", None, "", "h100_sxm"),
        ("h100", 94, "", "h100_nvl"),
        ("H100 PCIe", 80, "", "h100_pcie"),
        ("h100", 80, "gpu-h100-sxm_8gpu", "h100_sxm"),
        ("H100 NVL", None, "", "h100_nvl"),
        ("h200", 141, "Standard_ND96isr_H200_v5", "h200_sxm"),
        ("v100", 16, "Standard_NC6s_v3", "v100_pcie_16gb"),
        ("v100", 32, "p3dn.24xlarge", "v100_sxm_32gb"),
        ("a10g", 22.4, "", "a10g"),
        ("rtxpro6000", 96, "", "rtx_pro_6000_server"),
        ("b200", 179.1, "", "b200_sxm"),
        ("b200", 192, "", "b200_sxm"),
        ("gb200", 186, "", "gb200"),
        ("mi300x", None, "", "mi300x"),
    ],
)
def test_names_of_gpus(gpu: str, memory_gb: float | None, instance: str, device: str) -> None:
    assert find_device(gpu, memory_gb, instance).name == device


@pytest.mark.parametrize(
    ("gpu", "memory_gb", "instance", "told"),
    [
        ("a100", None, "", "may be any of a100_"),
        ("v100", None, "", "give the memory of a GPU"),
        ("a100", 24, "", "a100 with 24 GB is not in the catalogue"),
        ("rtx 4090", 48, "", "rtx 4090 with 48 GB is not in the catalogue"),
        ("k80", 12, "", "no device 'k80'"),
        ("t4g", 16, "", "no device 't4g'"),
        ("l4", 24, "p5.48xlarge", "p5.48xlarge has h100_sxm in the catalogue, not l4"),
        ("a100", 80, "p4d.24xlarge", "p4d.24xlarge has a100_sxm_40gb"),
    ],
)
def test_names_that_say_too_little_are_refused(gpu: str, memory_gb: float | None, instance: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        find_device(gpu, memory_gb, instance)


@pytest.mark.parametrize("name", catalog.device_names())
def test_every_device_is_found_by_its_own_name_and_memory(name: str) -> None:
    kind = catalog.device(name)
    assert find_device(name).name == name
    assert find_device(name, kind.memory_bytes / 1e9).name == name
    family = family_of(name)
    assert family is not None
    assert name in devices_meant(family)


def test_one_row(read: Read) -> None:
    (offer,) = read(HEAD + P5).offers
    assert offer.entry() == {
        "name": "aws/p5.48xlarge@us-east-1",
        "device": "h100_sxm",
        "gpus": 8,
        "price_usd_per_hour": 55.04,
        "region": "us-east-1",
        "market": "on_demand",
    }


def test_other_headers(read: Read) -> None:
    """SkyPilot's columns: host memory is not the GPU's, and a row has two prices; and a bare table."""
    sky = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region\n"
    found = read(sky + "g6.48xlarge,L4,8.0,192,768,x,13.35,5.1,us-east-1\nx2,T4,1.0,8,32,x,0.75,,eu\n").offers
    assert [(one.name, one.device, one.gpus, one.price_usd_per_hour) for one in found] == [
        ("g6.48xlarge@us-east-1", "l4", 8, 13.35),
        ("g6.48xlarge@us-east-1:spot", "l4", 8, 5.1),
        ("x2@eu", "t4", 1, 0.75),
    ]
    bare = read("GPU,GPUs,Price per GPU hour,Currency\nH100 NVL,2,$3.00,USD\n")
    (offer,) = bare.offers
    assert (offer.name, offer.device, offer.price_usd_per_hour) == ("2xH100 NVL", "h100_nvl", 6.0)
    assert "no column for the market" in str(bare.notes[0])


def test_the_newest_price_counts(read: Read) -> None:
    old, older = P5.replace("55.04,6.88,2026-07-20", "98.32,12.29,2025-01-01"), P5.replace("2026-07-20", "2024-01-01")
    for text in (old + P5 + older, P5 + older + old, older + old + P5):
        table = read(HEAD + text)
        assert [(one.price_usd_per_hour, one.as_of) for one in table.offers] == [(55.04, "2026-07-20")]
    assert "55.04 USD/h of 2026-07-20 taken over 98.32 of 2025-01-01" in str(read(HEAD + old + P5).notes[0])
    assert read(HEAD + P5 + P5).notes == ()
    assert len(read(HEAD + P5 + P5).offers) == 1
    with pytest.raises(DescriptionError, match=r":3: aws/p5.*has two prices, 55.04 \(line 2\) and 60 USD/h"):
        read(HEAD + P5 + P5.replace("55.04,6.88", "60,7.5"))


def test_filters(read: Read) -> None:
    text = HEAD + P5 + "gcp,us-central1,a2-highgpu-1g,a100,1,40,spot,1.5,1.5,\n"
    text += "gcp,us-central1,a2-ultragpu-1g,a100-80gb,1,80,on_demand,5,5,\ngcp,us-central1,odd,k80,1,12,spot,-1,1,\n"

    def names(**asked: object) -> list[str]:
        return [one.instance for one in read(text, PriceFilter(**asked)).offers]  # type: ignore[arg-type]

    assert names(provider="AWS") == ["p5.48xlarge"]
    assert names(gpus=("a100",)) == ["a2-highgpu-1g", "a2-ultragpu-1g"], "a family; the bad k80 is not asked for"
    assert names(gpus=("A100-80GB", "h100")) == ["p5.48xlarge", "a2-ultragpu-1g"]
    assert names(market="on_demand") == ["p5.48xlarge", "a2-ultragpu-1g"]
    assert names(regions=("US-East-1",)) == ["p5.48xlarge"]
    with pytest.raises(DescriptionError, match=r"no usable row of region mars \(the table has us-central1, us-east-1"):
        names(regions=("mars",))
    with pytest.raises(OptionError, match="no device 'k80'"):
        names(gpus=("k80",))


def row(**changes: str) -> str:
    cells = dict(zip(HEAD.strip().split(","), P5.strip().split(","), strict=True)) | changes
    return ",".join(cells.values()) + "\n"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpu": "k80"}, "no device 'k80'"),
        ({"gpu": ""}, "names no GPU"),
        ({"gpus_per_instance": "0.5"}, "rents 0.5 GPUs"),
        ({"gpus_per_instance": "0"}, "gpus is '0'"),
        ({"gpus_per_instance": "eight"}, "gpus is 'eight'"),
        ({"gpus_per_instance": "nan"}, "gpus is 'nan'"),
        ({"usd_per_hour": "0"}, "price is '0', not a number above 0"),
        ({"usd_per_hour": "-3"}, "price is '-3'"),
        ({"usd_per_hour": ""}, "has no price"),
        ({"usd_per_hour": "inf"}, "price is 'inf'"),
        ({"usd_per_hour": "€55"}, "prices must be in USD"),
        ({"usd_per_hour": "6.88", "usd_per_gpu_hour": "55.04"}, "do not agree: columns are mixed up?"),
        ({"gpu_mem_gib": "640"}, "h100 with 640 GB is not in the catalogue"),
        ({"gpu_mem_gib": "-1"}, "not the memory of a GPU"),
        ({"market": "futures"}, "unknown market 'futures'"),
        ({"as_of": "yesterday"}, "as_of is 'yesterday'"),
        ({"instance_type": "x" * 61}, "not a name of up to 60 characters"),
        ({"region": "\x1b[31m"}, "region is '\\x1b[31m'"),
    ],
)
def test_bad_rows(read: Read, changes: dict[str, str], told: str) -> None:
    text = HEAD + row(instance_type="other") + row(**{"instance_type": "bad"} | changes)
    with pytest.raises(DescriptionError) as caught:
        read(text)
    (finding,) = caught.value.findings
    assert finding.line == 3
    assert told in finding.message
    table = read(text, skip_bad=True)
    assert [offer.instance for offer in table.offers] == ["other"]
    assert table.skipped == (finding,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (HEAD, "has no rows"),
        ("gpu,gpus\nh100,8\n", "no column for a price"),
        ("a,b\n1,2\n", "no column for gpu .such as gpu, device"),
        ("gpu,gpus,eur_per_hour\nh100,8,50\n", "is in EUR"),
        ("gpu,gpus,price,currency\nh100,8,50,EUR\n", ":2: the currency is 'EUR'"),
        ("gpu,gpus,price,hourly\nh100,8,50,50\n", "several columns for price"),
        ("gpu,gpus,price,spot_price,market\nh100,8,50,3,spot\n", "one for spot prices"),
        ("gpu,gpus,price,spot_price\nh100,8,,\n", ":2: has no price"),
        ("gpu,gpus,price\nh100,8\n", "has 2 fields"),
        ("gpu,h100,l4\ngpus,8,1\nprice,50,1\n", ":1: looks transposed"),
        ("provider,aws,aws\ngpu,h100,l4\ngpus,8,1\nprice,50,1\n", "each once .not transposed"),
    ],
)
def test_bad_tables(read: Read, text: str, told: str) -> None:
    with pytest.raises(DescriptionError, match=told):
        read(text)
    with pytest.raises(DescriptionError):
        read(text, skip_bad=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(catalog.device_names()),
            st.integers(1, 16),
            st.floats(0.01, 500),
            st.sampled_from(["on_demand", "spot", "reserved"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_round_trip(read: Read, rows: list[tuple[str, int, float, str]]) -> None:
    lines = [f"{device},{gpus},{price!r},{market},i{i}" for i, (device, gpus, price, market) in enumerate(rows)]
    offers = read("gpu,gpus,usd_per_hour,market,instance\n" + "\n".join(lines)).offers
    assert [(one.device, one.gpus, one.price_usd_per_hour, one.market) for one in offers] == rows
    assert len({one.name for one in offers}) == len(rows)


def test_recorded_prices(shared_data: Path) -> None:
    """1,465 rows of three clouds: fractions of GPUs, T4G and RTX PRO 4500 are the only ones that are no offer."""
    path = shared_data / "fleet" / "gpu_prices.csv"
    table = read_price_table(path, skip_bad=True)
    assert (len(table.offers), len(table.skipped)) == (1376, 89)
    reasons = {finding.message.split(";")[0].split(":")[0] for finding in table.skipped}
    assert reasons == {
        *(f"rents {share} GPUs" for share in ("0.125", "0.25", "0.3333", "0.5")),
        "the catalogue has no device 't4g'",
        "the catalogue has no device 'rtx-pro-4500'",
    }
    prices = {offer.name: offer for offer in table.offers}
    assert len(prices) == len(table.offers)
    assert prices["aws/p4d.24xlarge@us-east-1"].device == "a100_sxm_40gb"
    assert prices["aws/p4de.24xlarge@us-east-1"].device == "a100_sxm"
    assert prices["azure/Standard_NC24ads_A100_v4@eastus"].device == "a100_pcie"
    with pytest.raises(DescriptionError) as caught:
        read_price_table(path)
    assert len(caught.value.findings) == 89
    other = read_price_table(shared_data / "fleet" / "gpu_prices_neocloud.csv")
    assert {offer.device for offer in other.offers} >= {"h100_sxm", "h200_sxm", "l40s", "b200_sxm", "rtx_a6000"}
