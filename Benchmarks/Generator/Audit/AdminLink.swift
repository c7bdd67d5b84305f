// Blocking calls to a sidecar (ADMIN) or a ledger (QUERY), for the audit.

internal import NIOCore
package import TollgateCore
package import TollgateWire

package final class AdminLink {
  private let line: StandingLine
  private let role: Role
  private let token: String
  private var correlation: UInt64 = 1
  package private(set) var deployment = ""
  package private(set) var sidecar = ""

  package convenience init(_ target: Target, role: Role, token: String) throws {
    try self.init([target], role: role, token: token)
  }

  /// - Parameter targets: sidecars of one deployment; any of them will do.
  package init(_ targets: [Target], role: Role, token: String) throws {
    line = StandingLine(targets, timeoutSeconds: 60)
    self.role = role
    self.token = token
    try line.use(greeting: greet) { _ in }
  }

  private func greet(_ socket: BlockingSocket) throws {
    correlation += 1
    var hello = ByteBuffer()
    hello.writeFrame(
      Hello(role: role, client: "tollgate bench audit", token: token), correlation: correlation)
    try socket.send(Array(hello.readableBytesView))
    let frame = try Self.next(socket)
    switch frame.header.opcode {
    case .welcome:
      let welcome = try Welcome.decode(frame)
      guard deployment.isEmpty || deployment == welcome.deployment.text else {
        throw BenchError(
          "\(socket.target) is of deployment \(welcome.deployment.text), not \(deployment)")
      }
      deployment = welcome.deployment.text
      sidecar = welcome.sidecar.text
    case .error:
      let error = try ErrorReply.decode(frame)
      throw BenchError(
        "\(socket.target) refused the role \(role.name): \(error.code.name) \(error.message)")
    default: throw BenchError("\(socket.target) answered the hello with something else")
    }
  }

  package func admin(_ method: AdminMethod, _ body: Document) throws -> Document {
    try call(method.name) { request in
      request.writeFrame(
        AdminRequest(method, body: Array(body.json().utf8)), correlation: correlation,
        deadlineMilliseconds: 60_000)
    } decode: { frame in
      let reply = try AdminReply.decode(frame)
      return (reply.status, reply.body)
    }
  }

  package func query(_ method: QueryMethod, _ body: Document) throws -> Document {
    try call(method.name) { request in
      request.writeFrame(
        QueryRequest(method, body: Array(body.json().utf8)), correlation: correlation)
    } decode: { frame in
      let reply = try QueryReply.decode(frame)
      return (reply.status, reply.body)
    }
  }

  private func call(
    _ what: String, encode: (inout ByteBuffer) -> Void,
    decode: (Frame) throws -> (ErrorCode?, [UInt8])
  ) throws -> Document {
    let body = try line.use(greeting: greet) { socket in
      correlation += 1
      var request = ByteBuffer()
      encode(&request)
      try socket.send(Array(request.readableBytesView))
      return try answer(socket, what, decode)
    }
    do {
      return try Document(json: body, bytesMax: 64 << 20)
    } catch {
      throw BenchError("\(what): the answer is not JSON: \(error)")
    }
  }

  private func answer(
    _ socket: BlockingSocket, _ what: String, _ decode: (Frame) throws -> (ErrorCode?, [UInt8])
  ) throws -> [UInt8] {
    var body: [UInt8] = []
    while true {
      let frame = try Self.next(socket)
      guard frame.header.correlation == correlation else { continue }
      if frame.header.opcode == .error {
        let error = try ErrorReply.decode(frame)
        throw BenchError("\(what): \(error.code.name) \(error.message)")
      }
      let (status, piece) = try decode(frame)
      body += piece
      if let status {
        throw BenchError("\(what): \(status.name) \(String(decoding: body, as: UTF8.self))")
      }
      if !frame.header.flags.contains(.more) { return body }
    }
  }

  private static func next(_ socket: BlockingSocket) throws -> Frame {
    try socket.receive { input in
      guard input.count >= FrameHeader.bytes else { return nil }
      var head = ByteBuffer(bytes: input.array(0..<FrameHeader.bytes))
      guard
        let header = try FrameHeader.read(from: &head, frameBytesMax: WireLimits.frameBytesMax)
      else { return nil }
      let length = FrameHeader.bytes + Int(header.payloadBytes)
      guard input.count >= length else { return nil }
      defer { input.consume(length) }
      return Frame(
        header: header, payload: ByteBuffer(bytes: input.array(FrameHeader.bytes..<length)))
    }
  }
}
