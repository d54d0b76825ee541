package main
func mqttSuite(s *Suite){}
func acrossSuite(s *Suite){}
