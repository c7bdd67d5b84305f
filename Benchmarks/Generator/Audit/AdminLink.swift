// Blocking calls to a sidecar (ADMIN) or a ledger (QUERY), for the audit.

internal import NIOCore
package import TollgateCore
package import TollgateWire

package final class AdminLink {
  private let socket: BlockingSocket
  private var correlation: UInt64 = 1
  package private(set) var deployment = ""
  package private(set) var sidecar = ""

  package init(_ target: Target, role: Role, token: String) throws {
    socket = try BlockingSocket(target, timeoutSeconds: 60)
    var hello = ByteBuffer()
    hello.writeFrame(
      Hello(role: role, client: "tollgate bench audit", token: token), correlation: correlation)
    try socket.send(Array(hello.readableBytesView))
    let frame = try next()
    switch frame.header.opcode {
    case .welcome:
      let welcome = try Welcome.decode(frame)
      deployment = welcome.deployment.text
      sidecar = welcome.sidecar.text
    case .error:
      let error = try ErrorReply.decode(frame)
      throw BenchError(
        "\(target) refused the role \(role.name): \(error.code.name) \(error.message)")
    default: throw BenchError("\(target) answered the hello with something else")
    }
  }

  package func admin(_ method: AdminMethod, _ body: Document) throws -> Document {
    correlation += 1
    var request = ByteBuffer()
    request.writeFrame(
      AdminRequest(method, body: Array(body.json().utf8)), correlation: correlation,
      deadlineMilliseconds: 60_000)
    return try call(request, method.name) { frame in
      let reply = try AdminReply.decode(frame)
      return (reply.status, reply.body)
    }
  }

  package func query(_ method: QueryMethod, _ body: Document) throws -> Document {
    correlation += 1
    var request = ByteBuffer()
    request.writeFrame(
      QueryRequest(method, body: Array(body.json().utf8)), correlation: correlation)
    return try call(request, method.name) { frame in
      let reply = try QueryReply.decode(frame)
      return (reply.status, reply.body)
    }
  }

  private func call(
    _ request: ByteBuffer, _ what: String, _ decode: (Frame) throws -> (ErrorCode?, [UInt8])
  ) throws -> Document {
    try socket.send(Array(request.readableBytesView))
    var body: [UInt8] = []
    while true {
      let frame = try next()
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
      if !frame.header.flags.contains(.more) { break }
    }
    do {
      return try Document(json: body, bytesMax: 64 << 20)
    } catch {
      throw BenchError("\(what): the answer is not JSON: \(error)")
    }
  }

  private func next() throws -> Frame {
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
