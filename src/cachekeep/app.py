"""The composition root: every room is furnished here, once, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import os
import resource
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import uvicorn

from cachekeep.audit.trail import Trail
from cachekeep.backup.keyring import RootKeyRing
from cachekeep.backup.vault import Vault
from cachekeep.chaos.harm import clear_left_over
from cachekeep.clock import Clock, SystemClock
from cachekeep.compute.contract import Driver, ProcessSpec
from cachekeep.compute.link import EngineLink
from cachekeep.compute.local import KEPT_DIR, LocalDriver, clients, packet_filter
from cachekeep.compute.local.account import memcached_account
from cachekeep.compute.local.usage import LocalUsage
from cachekeep.compute.meter import Meter
from cachekeep.compute.spares import Spares
from cachekeep.control import Hands, Keeper, Observer
from cachekeep.control.backups import Backups
from cachekeep.control.execute import PapersOf, specs
from cachekeep.control.gatekeeper import Gatekeeper
from cachekeep.control.jobs import JobsHere
from cachekeep.control.observe import Passwords, target
from cachekeep.control.recorders import Recorders
from cachekeep.control.workers import Pruner, Single, Worker, at_work
from cachekeep.engines.catalogue import Catalogue
from cachekeep.errors import CachekeepError, Unusable
from cachekeep.metrics.assembled import Metrics
from cachekeep.metrics.series import database_for
from cachekeep.model import Cache, Credential, Installation, Node, Secret
from cachekeep.network.addresses import Pool
from cachekeep.network.bindable import check_pool
from cachekeep.network.fronts import LocalFronts, programs
from cachekeep.plan import Policy
from cachekeep.security import access_keys, certs, keys, sigv4, tokens
from cachekeep.security import sealing as seals
from cachekeep.security.access_keys import Credentials
from cachekeep.services import SERVICES, Services, ServiceSettings
from cachekeep.services.elasticache.quotas import TEST_FAILOVERS_PER_DAY
from cachekeep.services.workers import workers as own_workers
from cachekeep.settings import AUDIT_DIR, ENDPOINT_FILE, ENGINES_DIR, JOURNAL_FILE, ServedAt, Settings
from cachekeep.store import DataDirLock, FileDisk, Journal, JournaledStore, SqlStore, Store
from cachekeep.store.every import every
from cachekeep.store.migrate import Seal
from cachekeep.toolchain.installed import discover
from cachekeep.toolchain.making import make, tried_lately
from cachekeep.web.desk import Desk
from cachekeep.web.listener import listen
from cachekeep.web.server import Web
from cachekeep.web.thread import across, answering, serve
from cachekeep.web.tls import serving
from cachekeep.wire.audit import Auditor
from cachekeep.wire.gateway import Gateway

log = logging.getLogger("cachekeep")

VERSION: Final = importlib.metadata.version("cachekeep")
_LAST_WORDS_SECONDS: Final = 1


class _Parts(NamedTuple):
    """What is there between ``start`` and ``stop``."""

    listener: socket.socket
    server: uvicorn.Server
    workers: tuple[Worker, ...]
    services: Services
    driver: Driver


class App:
    """One control plane. ``start``, then ``serve`` until ``finish`` is called, then ``stop``;
    ``run`` is all of that, with signals."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.catalogue = Catalogue()
        self.url = ""
        self._open_files: int | None = None
        self._password_of: Passwords
        self._papers_of: PapersOf
        self._undo = contextlib.AsyncExitStack()
        self._parts: _Parts | None = None
        self._finish = asyncio.Event()

    async def run(self, ready: Callable[[App], None] = lambda app: None) -> int:
        """Serve until SIGINT or SIGTERM. Calls ``ready`` when requests are answered. Returns how many engine processes go on.

        Raises ``Unusable`` when it cannot start; whatever was begun is undone, engines go on.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.finish)
        try:
            await self.start()
            ready(self)
            await self.serve()
            return await self.running()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Take the data directory, open everything, answer requests. Raises ``Unusable``."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings, clock, undo = self.settings, self.clock, self._undo
        loop = asyncio.get_running_loop()
        check_pool(settings.address_pool)
        key = keys.load_or_make(settings.data_dir)  # first of all: it refuses a directory in which others may write
        issuer = access_keys.load_or_make(settings.data_dir, settings.account)
        lock = undo.enter_context(DataDirLock(settings.data_dir))
        await asyncio.to_thread(clear_left_over, settings.data_dir)
        listener = undo.enter_context(
            listen(settings.host, settings.port, here_only=settings.auth == "open", encrypted=settings.tls)
        )
        sealing = seals.load(settings.root_key or settings.data_dir / seals.FILE, given=settings.root_key is not None)
        database = SqlStore(settings.database_url, clock, linger_seconds=settings.linger_seconds, seal=_seal_with(sealing))
        undo.push_async_callback(database.aclose)
        await database.open()
        ours = _identity(settings.data_dir)
        await _claim_database(database, ours)
        # Nobody else has this database, nor the journal, as long as the directory is ours alone.
        store = JournaledStore(database, Journal(FileDisk(settings.data_dir / JOURNAL_FILE)), clock, alone=lock.held)
        undo.push_async_callback(store.aclose)
        await store.open()
        known, strangers = self._trails()
        await _hold_to_key(store, sealing, given=settings.root_key is not None)
        self._password_of = sealing.password_of
        authorities = certs.furnished(settings.data_dir / certs.FILE, sealing, settings.ca_cert, settings.ca_key, clock)
        self._papers_of = authorities.papers_of
        await self.reload()
        driver = LocalDriver(settings.data_dir, clock, programs=programs(lambda: self.catalogue))
        undo.push_async_callback(driver.aclose)
        await driver.open()
        self._open_files = driver.capacity().open_files

        holder = ours + secrets.token_hex(4)
        # The lock proves that whoever held leases from here is dead; and when we go, nobody has to wait for ours to run out.
        await store.bury(ours)
        undo.push_async_callback(_bury, store, holder)

        link = EngineLink(driver, clock, Spares(settings.data_dir))
        undo.push_async_callback(link.aclose)
        fronts = LocalFronts(lambda key: driver.log_path(key).parent)
        policy = Policy(
            silence_seconds=settings.silence_seconds,
            command_seconds=settings.command_seconds,
            script_seconds=settings.script_seconds,
            linger_seconds=settings.linger_seconds,
            fence=settings.fence,
            loss_budget_seconds=settings.loss_budget_seconds,
            loss_budget_bytes=settings.loss_budget_bytes,
        )
        vault = Vault.open(settings.vault_url, RootKeyRing(sealing))
        undo.callback(vault.close)
        target_of = functools.partial(target, password_of=sealing.password_of, trust_of=authorities.trust_of)
        backups = Backups(
            store=store,
            vault=vault,
            link=link,
            target_of=target_of,
            clock=clock,
            catalogue=lambda: self.catalogue,
            data_dir=settings.data_dir,
            kept=settings.data_dir / KEPT_DIR,
            verify_bytes=settings.verify_bytes,
            buckets=settings.buckets,
        )
        jobs = JobsHere(backups.runners)
        undo.push_async_callback(jobs.aclose)
        observer = Observer(
            store=store,
            driver=driver,
            link=link,
            fronts=fronts,
            jobs=jobs,
            clock=clock,
            places=Pool(settings.address_pool),
            password_of=sealing.password_of,
            trust_of=authorities.trust_of,
        )
        hands = Hands(driver=driver, link=link, fronts=fronts, specs=self._spec, observer=observer)
        keeper = Keeper(
            store=store,
            driver=driver,
            link=link,
            observer=observer,
            hands=hands,
            clock=clock,
            holder=holder,
            policy=policy,
            alone=lock.held,
        )
        no_filter = await asyncio.to_thread(packet_filter.unable)
        kept_in = database_for(settings.database_url, settings.data_dir, clock)
        measuring = Metrics(store, Meter(clock), LocalUsage(driver), observer.target, kept_in, clock)
        metrics = await undo.enter_async_context(measuring)
        service_settings = ServiceSettings(
            region=settings.region,
            account=settings.account,
            zones=settings.zones,
            address_pool=settings.address_pool,
            capacity_memory_bytes=driver.capacity().memory_bytes or 0,
            overcommit=settings.overcommit,
            any_subnet=settings.any_subnet,
            default_ingress=settings.default_ingress,
            no_filter=no_filter,
            hold_seconds=settings.hold_seconds,
            buckets=frozenset(settings.buckets),
            quotas={TEST_FAILOVERS_PER_DAY: settings.test_failovers_per_day_max},
            issuer=issuer,
            trails=(known, strangers),
            root_created_at=key.created_at,
        )
        table = packet_filter.PacketFilter(packet_filter.table_of(settings.data_dir))
        default = service_settings.default_security_group()
        gatekeeper = Gatekeeper(store, table, clock, default=default, lenient=settings.any_subnet)
        await gatekeeper.check(no_filter)
        services = Services(SERVICES, store, self.catalogue, service_settings, clock, sealing, authorities, metrics.archive)
        undo.callback(services.close)
        root = sigv4.AccessKey(key.secret_key, f"arn:aws:iam::{settings.account}:root", settings.account)
        credentials = Credentials(key.access_key, root, issuer)
        auditor = Auditor(known, strangers, clock)
        gateway = Gateway(
            served=services.served(),
            credentials=credentials,
            clock=clock,
            auth=settings.auth,
            region=settings.region,
            account=settings.account,
            dispatch=across(loop, services.dispatch),
            auditor=auditor,
            changes=services.changes,
            identify=across(loop, services.identify),
        )
        desk = Desk(
            services=services,
            observer=observer,
            clock=clock,
            policy=policy,
            version=VERSION,
            catalogue=lambda: self.catalogue,
            reload=self.reload,
            lacks=lambda: (*clients.lacks(), *gatekeeper.lacks()),
        )
        web = Web(
            gateway,
            desk,
            ask=across(loop, desk.answer),
            credentials=credentials,
            clock=clock,
            auditor=auditor,
            scrape=(tokens.load_or_make(settings.data_dir), across(loop, metrics.scraper.text)),
            changes=services.changes,
        )
        server = answering(web, serving(authorities, settings.host, settings.tls_names, clock) if settings.tls else None)
        port = listener.getsockname()[1]
        self.url = (
            f"{'https' if settings.tls else 'http'}://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        )
        _write_endpoint(settings.data_dir, ServedAt(self.url, settings.region, os.getpid()))
        asking = own_workers(services, store, service_settings, clock)
        recorders = Recorders(store, clock, data_dir=settings.data_dir, password_of=sealing.password_of, policy=policy)
        singles: dict[str, Worker] = {"pruner": Pruner(store, clock), **asking, **metrics.workers, **backups.workers}
        singles["recorders"] = recorders
        if no_filter is None:
            singles["gatekeeper"] = gatekeeper
        single = functools.partial(Single, store=store, clock=clock, holder=holder)
        workers: tuple[Worker, ...] = (keeper, *(single(name, worker) for name, worker in singles.items()))
        self._parts = _Parts(listener, server, workers, services, driver)

    def _trails(self) -> tuple[Trail, Trail]:
        """Of callers that are believed, and of strangers, so that these push out nobody else's lines. Raises ``Unusable``."""
        directory, most = self.settings.data_dir / AUDIT_DIR, self.settings.audit_bytes_max
        trails = Trail("known callers", directory / "known", most), Trail("strangers", directory / "strangers", most // 8)
        for trail in trails:
            trail.open()
            self._undo.callback(trail.close)
        return trails

    async def serve(self) -> None:
        """Answer requests and let workers work until ``finish`` is called. Raises what ended a worker, if something did."""
        assert self._parts is not None
        listener, server, workers, services, _ = self._parts
        async with at_work(workers) as working, self._building():
            web = asyncio.create_task(serve(server, listener))
            finish = asyncio.create_task(self._finish.wait())
            try:
                await asyncio.wait({web, finish, *working}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                finish.cancel()
                services.close()  # held requests are answered now
                server.should_exit = True
                await web

    def to_build(self) -> str | None:
        """What is built in the background, if that was asked for: the engine that is missing and has not failed to build today."""
        spec = self.catalogue.to_build if self.settings.build_engines else None
        return None if spec is None or tried_lately(self.settings.data_dir / ENGINES_DIR, spec) else spec

    @contextlib.asynccontextmanager
    async def _building(self) -> AsyncIterator[None]:
        """Inside, the engine that is missing is built, whatever comes of it."""
        building = asyncio.create_task(self._build())
        try:
            yield
        finally:
            building.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await building

    async def _build(self) -> None:
        spec, directory = self.to_build(), self.settings.data_dir
        try:
            if spec and await make(spec, directory, directory / ENGINES_DIR, self.catalogue.install_command(spec)):
                await self.reload()
        except Exception:
            log.exception("the build of %s in the background ended; nothing else has changed", spec)

    def finish(self) -> None:
        """Have ``serve`` come to its end."""
        self._finish.set()

    async def stop(self) -> None:
        """Let go of everything, last first. Engines go on."""
        await self._undo.aclose()

    async def running(self) -> int:
        """How many processes (engines and fronts) go on without us."""
        assert self._parts is not None
        driver = self._parts.driver
        seen = await driver.look(driver.known())
        return sum(p.process in ("running", "frozen") for p in seen.values())

    async def reload(self) -> Catalogue:
        """Look for installed engines again, and use them from now on."""
        directory = self.settings.data_dir
        self.catalogue = await asyncio.to_thread(discover, [directory / ENGINES_DIR], directory)
        if self._parts is not None:
            self._parts.services.use(self.catalogue)
            for worker in self._parts.workers:
                worker.hasten()
        return self.catalogue

    def _spec(self, cache: Cache, node: Node) -> ProcessSpec:
        run_as, open_files = memcached_account(), self._open_files
        return specs(self.catalogue, self._password_of, self._papers_of, run_as=run_as, open_files=open_files)(cache, node)


async def _claim_database(store: Store, ours: str) -> None:
    """Make the database this data directory's own. Raises ``Unusable`` when it is another's: its engines are unknown here."""
    async with store.transaction() as tx:
        owner = await tx.get(Installation, "installation")
        if owner is None:
            await tx.put(Installation(name="installation", identity=ours))
        elif owner.identity != ours:
            raise Unusable(
                "the database belongs to another data directory, whose engines cannot be seen from this one. Nothing was changed. "
                "Start with that --data-dir, or give this one a --database of its own."
            )


def _seal_with(sealing: seals.Sealing) -> Seal:
    """Seals what an earlier release kept as it is: then nothing is sealed yet, so a key that is not there was not lost."""

    def seal(uid: str, password: str) -> Credential:
        sealing.make()
        return sealing.credential(uid, 1, Secret(password))

    return seal


async def _hold_to_key(store: Store, sealing: seals.Sealing, *, given: bool) -> None:
    """See to it that there is a root key, and that it is the one that sealed what is stored: none is made where another was lost.
    Raises ``Unusable`` if the one that was given opens nothing; else caches whose passwords it does not open go on by themselves,
    and say so."""
    async with store.reading() as tx:
        sealed = {cache.name: all(map(sealing.opens, cache.credentials)) async for cache in every(tx) if cache.credentials}
    if not sealed:
        sealing.make()
        return
    lost = sorted(name for name, opens in sealed.items() if not opens)
    if given and len(lost) == len(sealed):
        raise Unusable(
            f"{sealing.path}, given with --root-key, is not the root key that sealed the passwords of what is stored "
            f"({', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}). Nothing was started or changed, and caches go on by "
            "themselves: give the file that they were created with."
        )
    if lost:
        log.error(
            "the root key %s does not open the passwords of %s: nobody looks after them, and their nodes go on by themselves. "
            "Bring the key back that sealed them, or give its file with --root-key, and start again",
            sealing.path,
            ", ".join(lost),
        )


def _identity(data_dir: Path) -> str:
    """What the holder names of this data directory's control planes, and of no others, begin with."""
    path = data_dir / "identity"
    try:
        try:
            with open(path, "x") as file:
                file.write(secrets.token_hex(8))
        except FileExistsError:
            pass
        mine = path.read_text().strip()
    except OSError as error:
        raise Unusable(f"{path} cannot be used: {error.strerror}.") from error
    return f"{socket.gethostname()}:{data_dir}:{mine}/"


async def _bury(store: Store, holder: str) -> None:
    with contextlib.suppress(CachekeepError, TimeoutError):
        await asyncio.wait_for(store.bury(holder), _LAST_WORDS_SECONDS)


def _write_endpoint(data_dir: Path, endpoint: ServedAt) -> None:
    path = data_dir / ENDPOINT_FILE
    draft = path.with_suffix(".new")
    try:
        draft.write_bytes(msgspec.json.encode(endpoint))
        draft.replace(path)
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror}. Nothing was started.") from error


def raise_open_files() -> None:
    """Allow ourselves as many descriptors as the hard limit does: each request costs one, and each node. Engines have
    limits of their own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft < 4096:
        log.warning("only %d open files are allowed: few requests at a time, and few clients of each node. See ulimit -Hn", soft)
