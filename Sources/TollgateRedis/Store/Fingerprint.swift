// A fingerprint of an operation's body, kept with its record. Four small hashes instead of one
// large, so that a mismatch can name the field that differs.

package import TollgateCore

package struct OperationFingerprint: Hashable, Sendable {
  /// In the order of the stored words.
  package enum Field: Int, Sendable, Hashable, CaseIterable {
    case subject, features, amounts, attributes
  }

  package let bytes: [UInt8]

  package init(subject: Subject, items: [Item], attributes: [String: String] = [:]) {
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
