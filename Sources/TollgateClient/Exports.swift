// The words of the API (Subject, Name, Item, Decision, Reason, OperationID …) live in TollgateCore,
// where the sidecar uses the same ones. They are re-exported whole rather than aliased one by one:
// an alias would name a type but not bring its members into view, and a caller who has to import
// a second module to read `decision.reason` has not been given one API.

@_exported public import TollgateCore
