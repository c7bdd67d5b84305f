// A fingerprint of an operation's body, kept with its record. Four small hashes instead of one
// large, so that a mismatch can name the field that differs. CHECK, CONSUME, POST and CANCEL of one
// body have one fingerprint; the kind and the terms of a reservation's requests are part of theirs,
// in the last word, so that no id stands for two of them.

package import TollgateCore

package struct OperationFingerprint: Hashable, Sendable {
  /// In the order of the stored words.
  package enum Field: Int, Sendable, Hashable, CaseIterable {
    case subject, features, amounts, attributes

    /// For messages.
    package var name: String {
      switch self {
      case .subject: "subject"
      case .features: "features"
      case .amounts: "amounts"
      case .attributes: "attributes or terms"
      }
    }
  }

  package let bytes: [UInt8]

  /// - Parameters:
  ///   - verb: nil for CHECK, CONSUME, POST and CANCEL, which have no terms.
  package init(
    subject: Subject, items: [Item], attributes: [String: String] = [:], verb: HoldVerb? = nil,
    terms: HoldTerms? = nil
  ) {
    var subjects = StableHash()
    subjects.combine(subject.path)
    var features = StableHash()
    var amounts = StableHash()
    for item in items {
      features.combine(item.feature.text)
      amounts.combine(item.amount)
    }
    var others = StableHash()
    if !attributes.isEmpty {
      for (key, value) in attributes.sorted(by: { $0.key < $1.key }) {
        others.combine(key)
        others.combine(value)
      }
    }
    if let verb { (terms ?? HoldTerms()).combine(verb: verb, into: &others) }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(16)
    for value in [subjects.value, features.value, amounts.value, others.value] {
      for shift in stride(from: 24, through: 0, by: -8) {
        bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(shift)))
      }
    }
    self.bytes = bytes
  }
}
