"""The device memory that holds resident adapters, in slots, and the policy of who stays."""

from adapters.bank.bank import Bank, BankStats, Lease
from adapters.bank.pack import PAGE, AdapterMeta, PackedAdapter, pack
from adapters.bank.slabs import Slabs

__all__ = ["PAGE", "AdapterMeta", "Bank", "BankStats", "Lease", "PackedAdapter", "Slabs", "pack"]
