"""What a registered version says once a patient it has seen asked to be left out: a tag, and a line for the reader."""

from __future__ import annotations

import logging
from datetime import date

from dr_platform.errors import DrpError
from dr_platform.tracking.registry import Tracker
from dr_platform.tracking.words import in_one_line

logger = logging.getLogger(__name__)

REVOKED_TAG = "revoked_patients"


@in_one_line
def mark_revoked(tracker: Tracker, model: str, number: int, patient: str, day: date, *, certain: bool) -> bool:
    """Tag a version with a patient's pseudonym and the day, and say it in its description; whether that was new.

    patient: the pseudonym, never the id. certain: whether the version is known to follow from the patient's images, or
    only not known not to. The description comes first: a version that has the tag has both. Raises RegistryError.
    """
    version = tracker.version(model, number)
    before = version.tags.get(REVOKED_TAG, "")
    if patient in before:
        return False
    client = tracker._client
    said = client.get_model_version(model, str(number)).description or ""
    if patient not in said:
        verb = "follows" if certain else "may follow"
        line = f"Revoked on {day.isoformat()}: this version {verb} from images of patient {patient}."
        client.update_model_version(model, str(number), f"{said}\n\n{line}".strip())
    entry = f"{patient} {day.isoformat()}"
    client.set_model_version_tag(model, str(number), REVOKED_TAG, f"{before}, {entry}" if before else entry)
    try:
        tracker.renew_card(model, number, tracker.report_of(model, number))
    except DrpError as error:  # tag and description have said it
        logger.warning("The model card of %s/%d does not say it: %s", model, number, error)
    return True
