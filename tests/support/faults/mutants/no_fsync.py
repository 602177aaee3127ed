"""A commit that syncs nothing: after a loss of power names stand before their bytes."""

import lorafold.artifacts
import lorafold.renames

lorafold.artifacts.sync_tree = lorafold.renames.sync_tree = lambda folder: None
