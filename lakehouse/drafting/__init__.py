"""A first contract for a table, written from what PostgreSQL's catalog says about it.

A draft is a starting point that a person reads: every choice that is not plain from the catalog is said in
`Draft.notes`. It errs to the safe side: what may be a secret stays out, and retention never applies until
someone says so. A draft is always a valid contract; what cannot become one is an error with its remedy.
"""

from lakehouse.drafting.draft import Draft, draft_contract, format_contract

__all__ = ["Draft", "draft_contract", "format_contract"]
