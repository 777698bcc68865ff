"""`gpuplan deploy` from the outside."""

from __future__ import annotations

TABLE = (
    "worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s\n"
    "wa,a,l4,A,1,100,100,5\nwb,b,l4,A,1,100,100,5\n"
)
SERVICES = """
services:
  - {name: a, demand: [{input_tokens: 100, output_tokens: 100, rate_per_s: 4}]}
  - {name: b, demand: [{input_tokens: 100, output_tokens: 100, rate_per_s: 4}]}
utilisation: 1
"""
OFFERS = """
offers:
  - {name: single, device: l4, gpus: 1, price_usd_per_hour: 2}
  - {name: pair, device: l4, gpus: 2, price_usd_per_hour: 3}
"""
