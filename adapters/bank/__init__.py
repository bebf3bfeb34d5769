"""The device memory that holds resident adapters, in slots, and the policy of who stays."""

from adapters.bank.bank import Bank, Loader
from adapters.bank.pack import PackedAdapter, pack
from adapters.bank.simple import SimpleBank
from adapters.bank.slabs import Slabs
from adapters.bank.slots import BankStats, Lease
from adapters.heads import PAGE

__all__ = ["PAGE", "Bank", "BankStats", "Lease", "Loader", "PackedAdapter", "SimpleBank", "Slabs", "pack"]
