"""The services that are served. A new one is a module (or a room) with a ``SERVICE``, and one line here."""

from typing import Final

from cachekeep.services import autoscaling, cloudtrail, cloudwatch, desk, ec2, elasticache, iam, kms, sts

SERVICES: Final = (
    elasticache.SERVICE,
    autoscaling.SERVICE,
    ec2.SERVICE,
    iam.SERVICE,
    sts.SERVICE,
    kms.SERVICE,
    cloudtrail.SERVICE,
    cloudwatch.SERVICE,
    desk.SERVICE,
)
