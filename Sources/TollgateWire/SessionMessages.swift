// The messages that open, keep and end a connection.

package import NIOCore
package import TollgateCore

package struct Hello: OpcodeMessage {
  package static let opcode = Opcode.hello
  package var versionMin: UInt8
  package var versionMax: UInt8
  package var role: Role
  /// Optional protocol features that the client knows.
  package var features: ProtocolFeatures
  /// For logs: program and release.
  package var client: String
  /// The credential; empty where the peer's uid on a Unix socket is enough.
  package var token: String

  package init(
    role: Role, client: String, token: String, versionMin: UInt8 = FrameHeader.version,
    versionMax: UInt8 = FrameHeader.version, features: ProtocolFeatures = []
  ) {
    self.versionMin = versionMin
    self.versionMax = versionMax
    self.role = role
    self.features = features
    self.client = client
    self.token = token
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(versionMin)
    buffer.put(versionMax)
    buffer.put(role.rawValue)
    buffer.put(UInt8(0))
    buffer.put(features.rawValue)
    buffer.put(client, UInt8.self, max: WireLimits.clientNameBytesMax)
    buffer.put(token, UInt16.self, max: WireLimits.tokenBytesMax)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Hello {
    let versionMin = try buffer.take(UInt8.self)
    let versionMax = try buffer.take(UInt8.self)
    guard versionMin <= versionMax else {
      throw .refused(.badRequest, "the version range is empty")
    }
    guard let role = Role(rawValue: try buffer.take()) else {
      throw .refused(.badRequest, "unknown role")
    }
    try buffer.takeReserved(1)
    let features = ProtocolFeatures(rawValue: try buffer.take())
    let client = try buffer.takeText(UInt8.self, max: WireLimits.clientNameBytesMax)
    let token = try buffer.takeText(UInt16.self, max: WireLimits.tokenBytesMax)
    try buffer.takeUnknownFields()
    return Hello(
      role: role, client: client, token: token, versionMin: versionMin, versionMax: versionMax,
      features: features)
  }
}

/// What a client does with one feature while no sidecar answers: the strictest policy of the
/// feature's limits.
package struct FeaturePolicy: Hashable, Sendable {
  package var feature: Name
  package var policy: FailurePolicy

  package init(feature: Name, policy: FailurePolicy) {
    self.feature = feature
    self.policy = policy
  }
}

package struct Welcome: OpcodeMessage {
  package static let opcode = Opcode.welcome
  package var version: UInt8
  package var role: Role
  /// Those of the hello that the server has too.
  package var features: ProtocolFeatures
  package var deployment: Name
  package var sidecar: Name
  /// Bytes of the largest frame the server reads from this connection, header included.
  package var frameBytesMax: UInt32
  /// Records that may await their answer on this connection; at that number nothing more is read.
  package var inFlightMax: UInt32
  package var recordsMax: UInt32
  package var defaultDeadlineMilliseconds: UInt32
  package var maxDeadlineMilliseconds: UInt32
  /// The server closes a connection on which nothing arrived for this long; 0: never.
  package var idleTimeoutMilliseconds: UInt32
  /// The server's wall clock, for a client whose own is wrong: ids carry a time.
  package var time: WallTime
  package var globalVersion: Int64
  package var policies: [FeaturePolicy]
  /// Features of idempotency scope `sidecar`, ascending: a retry is to go where it was sent first.
  package var sidecarFeatures: [Name]

  package init(
    version: UInt8 = FrameHeader.version, role: Role, features: ProtocolFeatures = [],
    deployment: Name, sidecar: Name, frameBytesMax: UInt32, inFlightMax: UInt32,
    recordsMax: UInt32 = UInt32(WireLimits.recordsMax), defaultDeadlineMilliseconds: UInt32,
    maxDeadlineMilliseconds: UInt32, idleTimeoutMilliseconds: UInt32, time: WallTime,
    globalVersion: Int64, policies: [FeaturePolicy], sidecarFeatures: [Name] = []
  ) {
    self.version = version
    self.role = role
    self.features = features
    self.deployment = deployment
    self.sidecar = sidecar
    self.frameBytesMax = frameBytesMax
    self.inFlightMax = inFlightMax
    self.recordsMax = recordsMax
    self.defaultDeadlineMilliseconds = defaultDeadlineMilliseconds
    self.maxDeadlineMilliseconds = maxDeadlineMilliseconds
    self.idleTimeoutMilliseconds = idleTimeoutMilliseconds
    self.time = time
    self.globalVersion = globalVersion
    self.policies = policies
    self.sidecarFeatures = sidecarFeatures
  }

  private static let sidecarFeaturesTag: UInt16 = 1

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(version)
    buffer.put(role.rawValue)
    buffer.put(UInt16(0))
    buffer.put(features.rawValue)
    buffer.put(deployment)
    buffer.put(sidecar)
    buffer.put(frameBytesMax)
    buffer.put(inFlightMax)
    buffer.put(recordsMax)
    buffer.put(defaultDeadlineMilliseconds)
    buffer.put(maxDeadlineMilliseconds)
    buffer.put(idleTimeoutMilliseconds)
    buffer.put(time.milliseconds)
    buffer.put(globalVersion)
    buffer.put(UInt16(policies.count))
    for policy in policies {
      buffer.put(policy.feature)
      switch policy.policy {
      case .closed:
        buffer.put(UInt8(0))
        buffer.put(Int64(0))
      case .open(let allowance):
        buffer.put(UInt8(1))
        buffer.put(allowance)
      case .stale:
        buffer.put(UInt8(2))
        buffer.put(Int64(0))
      }
    }
    guard !sidecarFeatures.isEmpty else { return }
    buffer.putField(Self.sidecarFeaturesTag) { field in
      field.put(UInt16(sidecarFeatures.count))
      for feature in sidecarFeatures { field.put(feature) }
    }
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Welcome {
    let version = try buffer.take(UInt8.self)
    guard let role = Role(rawValue: try buffer.take()) else {
      throw .refused(.badRequest, "unknown role")
    }
    try buffer.takeReserved(2)
    let features = ProtocolFeatures(rawValue: try buffer.take())
    var welcome = Welcome(
      version: version, role: role, features: features, deployment: try buffer.takeName(),
      sidecar: try buffer.takeName(), frameBytesMax: try buffer.take(),
      inFlightMax: try buffer.take(), recordsMax: try buffer.take(),
      defaultDeadlineMilliseconds: try buffer.take(), maxDeadlineMilliseconds: try buffer.take(),
      idleTimeoutMilliseconds: try buffer.take(), time: try buffer.takeTime(),
      globalVersion: try buffer.takeOrdinal(), policies: [])
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.policiesMax, each: 11, of: "policies")
    welcome.policies.reserveCapacity(count)
    for _ in 0..<count { welcome.policies.append(try decodePolicy(from: &buffer)) }
    try buffer.takeFields { (tag, field) throws(WireError) in
      guard tag == sidecarFeaturesTag else { return false }
      welcome.sidecarFeatures = try decodeFeatures(from: &field)
      return true
    }
    return welcome
  }

  private static func decodeFeatures(
    from field: inout ByteBuffer
  ) throws(WireError) -> [Name] {
    let count = try field.takeCount(
      UInt16.self, max: WireLimits.policiesMax, each: 2, of: "features")
    var features: [Name] = []
    features.reserveCapacity(count)
    for _ in 0..<count {
      let feature = try field.takeName()
      if let last = features.last, !(last < feature) {
        throw .refused(.badRequest, "feature \(feature) is repeated or out of order")
      }
      features.append(feature)
    }
    return features
  }

  private static func decodePolicy(
    from buffer: inout ByteBuffer
  ) throws(WireError) -> FeaturePolicy {
    let feature = try buffer.takeName()
    let kind = try buffer.take(UInt8.self)
    let allowance = try buffer.takeAmount()
    guard kind == 1 || allowance == 0 else {
      throw .refused(.badRequest, "only the policy open has an allowance")
    }
    switch kind {
    case 0: return FeaturePolicy(feature: feature, policy: .closed)
    case 1: return FeaturePolicy(feature: feature, policy: .open(allowance: allowance))
    case 2: return FeaturePolicy(feature: feature, policy: .stale)
    default: throw .refused(.badRequest, "unknown failure policy \(kind)")
    }
  }
}

package struct Ping: OpcodeMessage {
  package static let opcode = Opcode.ping
  /// Comes back in the pong.
  package var nonce: UInt64

  package init(nonce: UInt64) { self.nonce = nonce }

  package func encode(into buffer: inout ByteBuffer) { buffer.put(nonce) }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Ping {
    let nonce = try buffer.take(UInt64.self)
    try buffer.requireEnd(of: "PING")
    return Ping(nonce: nonce)
  }
}

package struct Pong: OpcodeMessage {
  package static let opcode = Opcode.pong
  package var nonce: UInt64

  package init(nonce: UInt64) { self.nonce = nonce }

  package func encode(into buffer: inout ByteBuffer) { buffer.put(nonce) }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Pong {
    let nonce = try buffer.take(UInt64.self)
    try buffer.requireEnd(of: "PONG")
    return Pong(nonce: nonce)
  }
}

/// The sender is about to close: send nothing new here; what is in flight is still answered.
package struct GoAway: OpcodeMessage {
  package static let opcode = Opcode.goAway
  package var code: ErrorCode
  /// How long the sender waits for the connection to empty.
  package var graceMilliseconds: UInt32
  package var message: String

  package init(code: ErrorCode, graceMilliseconds: UInt32, message: String) {
    self.code = code
    self.graceMilliseconds = graceMilliseconds
    self.message = message
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(code.rawValue)
    buffer.put(UInt16(0))
    buffer.put(graceMilliseconds)
    buffer.put(message, UInt16.self, max: WireLimits.messageBytesMax)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> GoAway {
    let code = try buffer.takeErrorCode()
    try buffer.takeReserved(2)
    let grace = try buffer.take(UInt32.self)
    let message = try buffer.takeText(UInt16.self, max: WireLimits.messageBytesMax)
    try buffer.requireEnd(of: "GOAWAY")
    return GoAway(code: code, graceMilliseconds: grace, message: message)
  }
}

/// A request that got no other reply, or (correlation id 0) the reason why the sender closes.
package struct ErrorReply: OpcodeMessage {
  package static let opcode = Opcode.error
  package var code: ErrorCode
  package var message: String
  /// The field or key at fault, where one is known.
  package var field: String?

  package init(code: ErrorCode, message: String, field: String? = nil) {
    self.code = code
    self.message = message
    self.field = field
  }

  package init(_ error: WireError) { self.init(code: error.code, message: error.text) }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(code.rawValue)
    buffer.put(UInt16(0))
    buffer.put(message, UInt16.self, max: WireLimits.messageBytesMax)
    buffer.put(field ?? "", UInt8.self, max: 255)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> ErrorReply {
    let code = try buffer.takeErrorCode()
    try buffer.takeReserved(2)
    let message = try buffer.takeText(UInt16.self, max: WireLimits.messageBytesMax)
    let field = try buffer.takeText(UInt8.self, max: 255)
    try buffer.requireEnd(of: "ERROR")
    return ErrorReply(code: code, message: message, field: field.isEmpty ? nil : field)
  }
}

extension ByteBuffer {
  /// A number this side does not know is read as INTERNAL_ERROR: the least that can be assumed of
  /// an error is that the outcome is unknown. Zero is no error and is refused.
  mutating func takeErrorCode() throws(WireError) -> ErrorCode {
    let number = try take(UInt16.self)
    guard number != 0 else { throw .refused(.badRequest, "error code 0") }
    return ErrorCode(rawValue: number) ?? .internalError
  }
}
