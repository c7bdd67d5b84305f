// Catalogs and bypasses. A catalog travels as the same JSON document that a catalog file holds
// (proto/catalog.schema.json), so that the file on disk and the one in force can be compared.

package import TollgateCore

package struct CatalogApplyRequest: Hashable, Sendable, Codable {
  /// The catalog document.
  package var document: Document
  /// nil: whatever is in force; else the apply is refused where another version is.
  package var expectedVersion: Int64?
  package var change: ChangeOptions

  package init(document: Document, expectedVersion: Int64? = nil, change: ChangeOptions) {
    self.document = document
    self.expectedVersion = expectedVersion
    self.change = change
  }
}

package struct CatalogRollbackRequest: Hashable, Sendable, Codable {
  /// The catalog version whose content becomes a new version.
  package var to: Int64
  package var change: ChangeOptions

  package init(to: Int64, change: ChangeOptions) {
    self.to = to
    self.change = change
  }
}

package struct CatalogChangeReply: Hashable, Sendable, Codable {
  package var change: ChangeReply
  /// The number of the catalog in force after the change.
  package var catalogVersion: Int64
}

package struct CatalogValidateRequest: Hashable, Sendable, Codable {
  package var document: Document

  package init(document: Document) { self.document = document }
}

package struct CatalogValidateReply: Hashable, Sendable, Codable {
  package var features: Int
  package var plans: Int
  package var limits: Int
  /// What is sound and may surprise.
  package var warnings: [String]

  package init(features: Int, plans: Int, limits: Int, warnings: [String] = []) {
    self.features = features
    self.plans = plans
    self.limits = limits
    self.warnings = warnings
  }
}

package struct CatalogDiffReply: Hashable, Sendable, Codable {
  /// 0: no catalog is in force.
  package var catalogVersion: Int64
  package var changes: [String]
  /// What makes it impossible to apply.
  package var refusals: [String]
  package var impact: Impact
}

package struct CatalogShowRequest: Hashable, Sendable, Codable {
  /// nil: the one in force.
  package var version: Int64?

  package init(version: Int64? = nil) { self.version = version }
}

package struct CatalogShowReply: Hashable, Sendable, Codable {
  package var catalogVersion: Int64
  package var globalVersion: Int64
  package var inForce: Bool
  package var document: Document
}

// MARK: - Bypass

package struct BypassRequest: Hashable, Sendable, Codable {
  package static let bypassesMax = 64
  package static let durationMillisecondsMax: Int64 = 7 * 86_400_000

  /// nil: every feature.
  package var feature: Name?
  package var durationMilliseconds: Int64
  package var change: ChangeOptions

  package init(feature: Name?, durationMilliseconds: Int64, change: ChangeOptions) {
    self.feature = feature
    self.durationMilliseconds = durationMilliseconds
    self.change = change
  }
}

package struct BypassClearRequest: Hashable, Sendable, Codable {
  /// nil: the one for every feature.
  package var feature: Name?
  /// Every bypass there is; `feature` is then absent.
  package var everything: Bool?
  package var change: ChangeOptions

  package init(feature: Name?, everything: Bool? = nil, change: ChangeOptions) {
    self.feature = feature
    self.everything = everything
    self.change = change
  }
}

package struct BypassListReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    /// nil: every feature.
    package var feature: Name?
    package var until: WallTime
    package var leftMilliseconds: Int64
    package var reason: String
    package var actor: String
  }

  package var time: WallTime
  package var bypasses: [Row]
}

/// `{}`. It opens a container all the same, so that a key too many is noticed.
package struct EmptyRequest: Hashable, Sendable, Codable {
  private enum NoKey: String, CodingKey { case none }

  package init() {}

  package init(from decoder: any Decoder) throws { _ = try decoder.container(keyedBy: NoKey.self) }

  package func encode(to encoder: any Encoder) throws {
    _ = encoder.container(keyedBy: NoKey.self)
  }
}
