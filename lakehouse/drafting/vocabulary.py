"""The words by which names in a database are read; data, so that one list is one place to mend."""

from __future__ import annotations


def _ordered(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for part in text.split(",") if (line := part.strip()))


# Best first.
TENANT_NAMES = _ordered("""
    organization_id organisation_id org_id tenant_id account_id workspace_id company_id tenant
    organization customer_id
""")
CREATED_NAMES = _ordered("""
    created_at created_on create_date created_date date_created creation_date creation_time created
    inserted_at inserted_on recorded_at logged_at received_at ingested_at detected_at computed_at
    captured_at issued_at placed_at ordered_at submitted_at registered_at timestamp ts
""")
EVENT_NAMES = _ordered("occurred_at event_time event_at event_timestamp occurred_on happened_at") + CREATED_NAMES
UPDATED_NAMES = _ordered("""
    updated_at modified_at updated_on modified_on last_updated_at last_modified_at last_updated
    last_modified changed_at update_date updated_date modified_date date_updated date_modified
    write_date updated modified
""")

# Parts of the name of a time that moves, lies ahead, or is long past.
MOVES = _set("""
    updated update modified modify changed write last latest touched synced refreshed seen accessed
    observed
""")
AHEAD = _set("""
    expires expire expired expiry expiration next due until lease deadline scheduled schedule ends renew
    renewal trial eta
""")
BIRTH = _set("birth born dob birthday birthdate")

# Secrets, in the singular.
SECRET = _set("""
    password passwd pwd pass pw passphrase passcode secret token jwt bearer credential cred cipher
    ciphertext encrypted salt otp totp hotp pin cookie session ssn cvv cvc pan iban keytab kubeconfig
    pem pfx keystore
""")
SECRET_PHRASES = _phrases("""
    api key, private key, access key, secret key, signing key, encryption key, master key, ssh key,
    license key, write key, auth key, client key, service key, session key, recovery key,
    integration key, account key, webhook key, shared key, key hash, hashed key, card number, card num,
    card no, credit card, cc number, social security, recovery code, backup code, verification code,
    reset code, auth code, authorization code, access code, security code, security answer, magic link,
    connection string, conn string, conn str, signed url, presigned url, database url, bank account,
    passport number, national id
""")
SECRET_RUN_TOGETHER = _ordered("""
    password passwd passphrase apikey privatekey secretkey accesskey accesstoken refreshtoken
    clientsecret ciphertext
""")
SECRET_NUMBERS = _set("otp totp hotp pin ssn cvv cvc pan passcode card cc security social code national passport")
ABOUT_A_SECRET = _set("""
    version type kind status state count algorithm alg provider policy scope scopes name expiry mode
    method issuer length format region enabled required label
""")
SECRET_IN_A_TABLE_OF_SECRETS = _set("key value hash digest data code sid jti")
JSON_OF_SECRETS = _set("auth oauth authorization header headers env")

# Persons, free text and addresses.
PERSONAL = _set("""
    email mail phone mobile fax ip address street city zip postcode postal username login nickname
    firstname lastname fullname surname birth birthday birthdate dob gender actor author latitude
    longitude geo tax nationality avatar signature
""")
PEOPLE = _set("""
    user person people customer contact employee member patient identity profile lead owner guest
    student candidate applicant subscriber author actor holder driver
""")
NAME_OF_A_PERSON = _set("first last full display given family middle maiden user legal nick")
FREE_TEXT = _set("""
    description note notes comment comments message body content text summary title subject reason
    rationale error detail details remark remarks feedback answer question query response request
    payload data evidence url uri endpoint
""")
