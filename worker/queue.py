"""The Celery app: one queue for each kind of work, which carries hints. Light to import: the listener needs it too."""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue
from kombu.transport import redis, virtual

from models.settings import Settings
from worker.broker import broker_options, broker_url
from worker.claims import Work


class QoS(redis.QoS):
    """Kombu's count of what a worker has taken and not acknowledged, which takes no more than the pool can do.

    Where the broker cannot be told (a network that is cut for some seconds), kombu counts that hint for ever; Celery
    logs it and goes on, and a worker of one process never takes another hint. Here the place is free all the same: the
    broker gives an unacknowledged hint out again in an hour, and a hint too many finds nothing to claim.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge. Raises what the broker's client raises."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Refuse. Raises what the broker's client raises."""
        try:
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


# Kombu looks its transport up by the URL's scheme, and has no setting for this.
redis.Channel.QoS = QoS


def make_app(settings: Settings) -> Celery:
    """Return an app that can send hints, and run tasks where `serve` prepared its children."""
    app = Celery("osteon", broker=broker_url(settings))
    app.conf.update(
        task_queues=[Queue(work.value, routing_key=work.value) for work in Work],  # type: ignore[no-untyped-call]
        task_acks_late=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A child first opens the database and loads the model; the pool gives up on it after four seconds otherwise.
        worker_proc_alive_timeout=60,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=broker_options(),
        event_queue_expires=60,
        control_queue_ttl=60,
        worker_max_memory_per_child=1_500_000,
        enable_utc=True,
        accept_content=["json"],
        task_serializer="json",
    )
    return app
