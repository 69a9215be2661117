import time, os
import pytest
from pathlib import Path
from tests.support import *
from tests.integration.test_bad_input_source import house, log

@pytest.mark.parametrize("app", ["lakehouse catalog","lakehouse capture", "lakehouse control"])
def test_killed_backend(house, tmp_path, app):
    with house.hot() as hot:
        insert_events(hot,"org-a",1,3)
        house.backfill("events"); house.backfill("audit_log")
        insert_events(hot,"org-a",10,3); log(hot,"org-a",1)
        marker=tmp_path/"m"
        p=house.start("sync","--once","--table","events","--table","audit_log",failpoints=f"capture.before_read=hold:{marker}@1")
        while not marker.exists():
            time.sleep(.05); assert p.poll() is None, p.communicate()
        n=hot.execute("select count(pg_terminate_backend(pid,5000)) from pg_stat_activity where application_name=%s and datname=current_database()",[app]).fetchone()
        marker.unlink()
        out,err=p.communicate(timeout=60)
        print("=====",app,n,p.returncode); print(out[-1500:]); print(err[-3000:])
        house.reopen()
        house.sync_ok("events"); house.sync_ok("audit_log"); house.assert_equal("events")

def test_missing_data_file(house, tmp_path):
    with house.hot() as hot:
        for o in ("org-a","org-b"):
            insert_events(hot,o,1,3)
        house.backfill("events"); house.sync_ok("events")
        f=next((tmp_path/"warehouse"/"org_org_2da").rglob("*.parquet")); f.unlink()
        insert_events(hot,"org-b",10,1)
        try:
            r=house.sync("events",reconcile=True); print(r)
        except BaseException as e: print("RAISED",type(e),str(e)[:500])
        r=house.sync("events",reconcile=False); print(r)
        try: print(house.compare("events"))
        except BaseException as e: print("RAISED",type(e),str(e)[:500])
        d=house.run("query","select count(*) from events","-o","org-a",check=None); print(d.returncode,d.stdout,d.stderr[-600:])
        d=house.run("sync","--once","--reconcile",check=None); print(d.returncode,d.stdout[-500:],d.stderr[-900:])

def test_missing_metadata(house, tmp_path):
    with house.hot() as hot:
        for o in ("org-a","org-b"):
            insert_events(hot,o,1,3)
        house.backfill("events"); house.sync_ok("events")
        for f in (tmp_path/"warehouse"/"org_org_2da").rglob("*.avro"): f.unlink()
        for o in ("org-a","org-b"): insert_events(hot,o,10,1)
        try:
            r=house.sync("events",reconcile=False); print("AVRO", r.errors, r.upserts)
        except BaseException as e: print("RAISED",type(e),str(e)[:500])
        for f in (tmp_path/"warehouse"/"org_org_2da").rglob("*.json"): f.write_text("{}")
        for o in ("org-a","org-b"): insert_events(hot,o,20,1)
        try:
            r=house.sync("events",reconcile=False); print("JSON", r.errors, r.upserts)
        except BaseException as e: print("RAISED",type(e),str(e)[:500])

def test_control_gone(house):
    with house.hot() as hot:
        insert_events(hot,"org-a",1,3); house.backfill("events")
        hot.execute("drop schema lakehouse cascade")
        try: print(house.sync("events"))
        except BaseException as e: print("RAISED",type(e),str(e)[:300])
        d=house.run("sync","--once",check=None); print(d.returncode,d.stdout[-500:],d.stderr[-900:])
