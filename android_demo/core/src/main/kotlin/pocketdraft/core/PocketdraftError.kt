package pocketdraft.core

/** What a user is told, in one plain sentence: what is wrong, and how to mend it. */
class PocketdraftError(message: String, cause: Throwable? = null) : Exception(message, cause)
