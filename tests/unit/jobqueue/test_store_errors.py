"""What the library for objects says becomes what a user can act on."""

import pytest
from obstore.exceptions import GenericError

from jobqueue.errors import StoreUnavailable
from jobqueue.storage.obstore import _translated

NO_CREDENTIALS = (
    "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1.1ms - "
    "Server returned non-2xx status code: 403 Forbidden"
)


def test_missing_credentials_are_called_so() -> None:
    with pytest.raises(StoreUnavailable, match="no credentials") as caught, _translated("workspaces/x"):
        raise GenericError(NO_CREDENTIALS)

    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_the_rest_is_one_line_of_bounded_length() -> None:
    with pytest.raises(StoreUnavailable) as caught, _translated("workspaces/x"):
        raise GenericError("x" * 1000 + "\nDebug source: ...")

    assert len(caught.value.message) < 400
    assert "Debug" not in caught.value.message
