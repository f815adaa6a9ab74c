"""The ledger: every durable fact of the node in one database, with one part for each of its users."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from dicom_node.store.alarms import Alarms
from dicom_node.store.arrivals import Arrivals
from dicom_node.store.cohorts import Cohorts
from dicom_node.store.consistency import Consistency
from dicom_node.store.database import Database
from dicom_node.store.deliveries import Deliveries
from dicom_node.store.elapsed import Elapsed
from dicom_node.store.jobs import Jobs
from dicom_node.store.overview import Overview
from dicom_node.store.processes import Processes
from dicom_node.store.results import Results
from dicom_node.store.retention import Retention
from dicom_node.store.routing import Routing
from dicom_node.store.schema import installation

if TYPE_CHECKING:
    from dicom_node.store.spool import Spool


class Ledger:
    """One database, with a part for each of its users. Safe to use from several threads and processes at once."""

    def __init__(self, url: str, spool: Spool, *, read_only: bool = False) -> None:
        """Opens ``url`` and brings its schema up to date; ``read_only``: changes nothing, not even that.

        Raises:
            ConfigurationError: the URL can't be used, or the schema is newer than this version supports (with
                ``read_only``: or older).
            StoreUnavailable: the database is unavailable.
        """
        self.database = Database(url, read_only=read_only)
        try:
            if read_only:
                self.database.check_schema()
            else:
                self.database.upgrade()
        except BaseException:
            self.database.close()
            raise
        self.alarms = Alarms(self.database)
        self.arrivals = Arrivals(self.database)
        self.routing = Routing(self.database)
        self.jobs = Jobs(self.database)
        self.results = Results(self.database)
        self.deliveries = Deliveries(self.database, spool)
        self.overview = Overview(self.database)
        self.retention = Retention(self.database)
        self.cohorts = Cohorts(self.database)
        self.processes = Processes(self.database)
        self.elapsed = Elapsed(self.database)
        self.consistency = Consistency(self.database)

    def device_uid(self) -> str:
        """The UID of this installation (2.25 and a random UUID, PS3.5 B.2), created on first use and permanent."""
        with self.database.write() as db:
            found = db.execute(select(installation.c.value).where(installation.c.name == "device_uid")).scalar()
            if found is not None:
                return str(found)
            made = f"2.25.{uuid.uuid4().int}"
            db.execute(insert(installation).values(name="device_uid", value=made))
            return made

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
