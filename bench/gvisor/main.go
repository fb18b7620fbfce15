// The servers of the stack's bench on gVisor's netstack, as src/stack/contender.rs has them: a host behind the
// TAP dev0. What its users turn on is on: selective acknowledgements, CUBIC, buffers that grow. It has no
// segmentation offload for a TAP.
package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/link/tun"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	nic    = 1
	device = "dev0"
	mtu    = 1500
	mac    = "\x02\x00\x00\x00\x00\x77"
	// The most that waits on either side of a connection, bytes.
	most = 4 << 20

	sink    = 7001
	source  = 7002
	answers = 7003
)

const page = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" +
	"This is a page of one hundred bytes, so that it is a page and not nothing at all......................\n"

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "gvisor:", err)
		os.Exit(1)
	}
}

func serve() error {
	fd, err := tun.OpenTAP(device)
	if err != nil {
		return err
	}
	link, err := fdbased.New(&fdbased.Options{
		FDs:            []int{fd},
		MTU:            mtu,
		EthernetHeader: true,
		Address:        tcpip.LinkAddress(mac),
	})
	if err != nil {
		return err
	}
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol,
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := configure(s, link); err != nil {
		return fmt.Errorf("%v", err)
	}
	for port, serve := range map[uint16]func(net.Conn){sink: take, source: give, answers: answer} {
		listener, err := gonet.ListenTCP(s, tcpip.FullAddress{Port: port}, ipv6.ProtocolNumber)
		if err != nil {
			return err
		}
		go accept(listener, serve)
	}
	fmt.Println("ready")
	select {}
}

func configure(s *stack.Stack, link stack.LinkEndpoint) tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true)
	cubic := tcpip.CongestionControlOption("cubic")
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: most, Max: most}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{
		Min: tcp.MinBufferSize, Default: tcp.DefaultReceiveBufferSize, Max: most,
	}
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &cubic, &moderate, &send, &receive,
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return err
		}
	}
	if err := s.CreateNIC(nic, link); err != nil {
		return err
	}
	for _, own := range []struct {
		protocol tcpip.NetworkProtocolNumber
		ip       net.IP
		len      int
	}{
		{ipv4.ProtocolNumber, net.ParseIP("192.168.77.100").To4(), 24},
		{ipv6.ProtocolNumber, net.ParseIP("fd00:4d::100"), 64},
	} {
		address := tcpip.AddressWithPrefix{Address: tcpip.Address(own.ip), PrefixLen: own.len}
		if err := s.AddProtocolAddress(
			nic,
			tcpip.ProtocolAddress{Protocol: own.protocol, AddressWithPrefix: address},
			stack.AddressProperties{},
		); err != nil {
			return err
		}
		s.AddRoute(tcpip.Route{Destination: address.Subnet(), NIC: nic})
	}
	s.AddRoute(tcpip.Route{
		Destination: header.IPv4EmptySubnet,
		Gateway:     tcpip.Address(net.ParseIP("192.168.77.1").To4()),
		NIC:         nic,
	})
	return nil
}

func accept(listener net.Listener, serve func(net.Conn)) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer connection.Close()
			serve(connection)
		}()
	}
}

func take(connection net.Conn) {
	buffer := make([]byte, 256<<10)
	for {
		if _, err := connection.Read(buffer); err != nil {
			return
		}
	}
}

func give(connection net.Conn) {
	buffer := bytes.Repeat([]byte{7}, 256<<10)
	for {
		if _, err := connection.Write(buffer); err != nil {
			return
		}
	}
}

// Requests come whole.
func answer(connection net.Conn) {
	buffer := make([]byte, 2048)
	for {
		count, err := connection.Read(buffer)
		if err != nil {
			return
		}
		request := buffer[:count]
		if strings.HasSuffix(string(request), "\r\n\r\n") {
			request = []byte(page)
		}
		if _, err := connection.Write(request); err != nil {
			return
		}
	}
}
