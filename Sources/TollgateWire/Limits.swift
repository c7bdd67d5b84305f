// Every length and count of the protocol has its bound here. A receiver checks a bound before it
// allocates for what the peer announced (DESIGN promise 8); the relations between the bounds are
// asserted by a test, so that no legal message can outgrow the frame that carries it.

import TollgateCore

package enum WireLimits {
  /// Bytes of a whole frame, header included, on any connection unless configured otherwise; what
  /// every client and every ledger accepts.
  package static let frameBytesMax = 1 << 20
  /// Bytes of a frame of CHECK … CANCEL or RESERVE … REFUND, whatever the connection allows: the
  /// answer to it then fits `frameBytesMax`, with a state for every item that it names.
  package static let dataFrameBytesMax = 96 * 1024
  /// Bytes of a whole frame before the hello was accepted.
  package static let helloFrameBytesMax = 4096
  /// Milliseconds; the largest deadline a request may carry.
  package static let deadlineMillisecondsMax: UInt32 = 600_000

  /// Records in one frame of CHECK … CANCEL, RESERVE … REFUND or DECISIONS.
  package static let recordsMax = 1024
  /// Items in one record (the same number as `Resolution.itemsMax`).
  package static let itemsMax = 16
  /// Attributes of one record or usage body.
  package static let attributesMax = 16
  /// Bytes of an attribute's value.
  package static let attributeValueBytesMax = 128
  /// Bytes of a trace parent; the W3C form has 55.
  package static let traceParentBytesMax = 64
  /// The longest time that one RESERVE or EXTEND may ask for.
  package static let ttlMillisecondsMax = UInt32(HoldBounds.ttlMax)
  /// Bytes of the reason of a REFUND.
  package static let refundReasonBytesMax = 256
  /// Burnt slices named in one decision; what goes beyond is left out.
  package static let burnsMax = 64
  /// Bytes of an error's text; longer texts are cut by the sender.
  package static let messageBytesMax = 512
  /// Bytes of the client name in a hello.
  package static let clientNameBytesMax = 64
  /// Bytes of the credential in a hello.
  package static let tokenBytesMax = 512
  /// Feature policies in a welcome (the same number as `Catalog.featuresMax`).
  package static let policiesMax = 256
  /// Extension fields in one field list.
  package static let fieldsMax = 64

  /// Buckets in a LINKED frame: `Deployment.bucketsMax` and the control bucket.
  package static let bucketStatesMax = 4097
  /// Entries in one BATCH or PRESENT frame.
  package static let entriesMax = 4096
  /// Bytes of one delta's body. A configuration delta holds two JSON documents.
  package static let deltaBodyBytesMax = 768 * 1024
  /// Counters named in one usage body (`Resolution` makes at most one per limit, and one more).
  package static let cellsMax = 64
  /// Counters in one usage body that got another amount than the whole.
  package static let partsMax = 96
  /// Rates in one usage body.
  package static let chargesMax = 16
  /// Rows in one page of BALANCES_REPLY.
  package static let balancesMax = 2048
  /// Bytes of the JSON document in one ADMIN, ADMIN_REPLY, QUERY, QUERY_REPLY or
  /// CONFIG_REPLY frame.
  package static let documentBytesMax = (1 << 20) - 4096
  /// Bytes of an account's configuration in BALANCES_REPLY.
  package static let accountConfigBytesMax = 256 * 1024
  /// Bytes of `key`, `action`, `actor` in a configuration delta.
  package static let auditNameBytesMax = 384
  /// Bytes of `reason` in a configuration delta.
  package static let auditReasonBytesMax = 1024
}
